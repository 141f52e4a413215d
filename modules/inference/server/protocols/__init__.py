"""What clients send and read: openai.py has OpenAI's completions, chat.py its chat completions, mlflow_protocol.py
MLflow's scoring protocol."""
