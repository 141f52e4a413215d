"""The model in a process of its own, so that HTTP and decoding don't share Python's lock.

messages.py has what the two processes say to each other and how it travels, child.py is the model's process; of the
server's, which never imports torch, model_client.py hands it prompts and takes its texts, process_handle.py starts and
ends it, and supervisor.py does so when there is reason to.
"""
