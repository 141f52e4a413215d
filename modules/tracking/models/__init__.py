"""Models in the tracking store: logged there, found again from a folder or a URI."""
