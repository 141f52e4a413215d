"""Every key that can be set, typed, with its meaning (a file a subject); loader.py reads them, help.py prints them."""
