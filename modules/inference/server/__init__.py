"""A model behind HTTP: engine.py has the batch that all requests share, app.py the endpoints, lifecycle.py the process.

access.py says whose requests are answered, requests.py checks what they send, request_handle.py follows one while it is
answered; protocols/ has their forms, prometheus.py the metrics, web_page.py the page for browsers (files in web/).
"""
