"""A model behind HTTP: engine.py has the batch that all requests share, app.py the endpoints, lifecycle.py the process.

requests.py checks what clients send, request_handle.py follows one request while it is answered; openai.py and
mlflow_protocol.py are the two protocols, prometheus.py the metrics, web_page.py the page for browsers (files in web/).
"""
