"""A model behind HTTP: one batch that all requests share (engine.py), endpoints (app.py), start to end (lifecycle.py).

requests.py: what is taken and what refused; exchange.py: one request while it is answered; openai.py and
invocations.py: the two ways to ask; metrics.py: what Prometheus reads; page.py: what people see, from web/.
"""
