"""What was asked and answered, and what people think of it: handed to a Recorder, as tracking/traces is one."""
