"""python -m benchmarks key=value …"""

import signal
import sys

from pipelines.cli.command_line import run_stage

from .benchmark import benchmark

signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that the turn that runs is ended then too
run_stage("benchmark", benchmark)
