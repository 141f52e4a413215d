"""A small tracking server that can be told to fail: what MLflow's client needs of one run, over real HTTP."""

from __future__ import annotations

import json
import re
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Fault = Literal["none", "hangs", "500", "database", "commits then drops", "dead"]


class FaultyStore:
    """Metrics are kept as a database keeps them: an exact repetition (name, step, time, value) changes nothing."""

    def __init__(self) -> None:
        self.run_id = uuid.uuid4().hex  # MLflow's client remembers for each run where its files go
        self.broken: Fault = "none"
        self.calls: list[str] = []
        self.metrics: dict[tuple[str, int, int, float], None] = {}
        self.repeated = 0
        self.tags: dict[str, str] = {}
        self.params: dict[str, str] = {}
        self.files: dict[str, bytes] = {}
        self.status = "RUNNING"
        self.deleted = False
        self.forbidden = "!"
        """Regular expression for names that are refused."""
        self.released = threading.Event()
        self.server = self.listen(0)
        self.port = self.server.server_address[1]
        self.uri = f"http://127.0.0.1:{self.port}"

    def listen(self, port: int) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer(("127.0.0.1", port), type("Answers", (Answers,), {"store": self}))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server

    @property
    def fault(self) -> Fault:
        return self.broken

    @fault.setter
    def fault(self, fault: Fault) -> None:
        if fault == "dead" != self.broken:
            self.server.shutdown()
            self.server.server_close()
        elif fault != "dead" == self.broken:
            self.server = self.listen(self.port)
        self.broken = fault

    def release(self) -> None:
        """Whoever waits for an answer gets it."""
        self.released.set()
        self.released = threading.Event()

    def stop(self) -> None:
        self.release()
        self.fault = "dead"

    def history(self, name: str) -> list[tuple[int, float]]:
        """(step, value) in the order of arrival."""
        return [(step, value) for key, step, _, value in self.metrics if key == name]

    def log_batch(self, body: dict[str, Any]) -> None:
        names = [entry["key"] for entries in body.values() if isinstance(entries, list) for entry in entries]
        if any(re.search(self.forbidden, name) for name in names):
            raise ValueError("a name with ! is invalid")
        for metric in body.get("metrics", []):
            row = (metric["key"], int(metric.get("step", 0)), int(metric["timestamp"]), float(metric["value"]))
            self.repeated += row in self.metrics
            self.metrics[row] = None
        self.tags |= {tag["key"]: tag["value"] for tag in body.get("tags", [])}
        self.params |= {param["key"]: param["value"] for param in body.get("params", [])}


class Answers(BaseHTTPRequestHandler):
    store: FaultyStore
    protocol_version = "HTTP/1.0"  # a connection a call: none outlives the server

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        call = self.path.partition("?")[0].rpartition("mlflow")[2]
        self.store.calls.append(call)
        if self.store.fault == "hangs":
            self.store.released.wait(600)
        if self.store.fault == "500":
            return self.reply(500, {"error_code": "INTERNAL_ERROR", "message": "out of order"})
        if self.store.fault == "database":  # what MLflow 3.17 makes of most errors of SQLAlchemy
            return self.reply(400, {"error_code": "BAD_REQUEST", "message": "a read-only transaction"})
        try:
            result = self.act(call, body)
        except ValueError as error:
            return self.reply(400, {"error_code": "INVALID_PARAMETER_VALUE", "message": str(error)})
        if self.store.fault == "commits then drops":
            self.close_connection = True
            return None
        return self.reply(200, result)

    def act(self, call: str, body: bytes) -> dict[str, Any]:
        if "-artifacts/artifacts/" in call:
            self.store.files[re.sub(".*/artifacts/", "", call)] = body
        elif call == "/runs/log-batch":
            self.store.log_batch(json.loads(body))
        elif call == "/runs/update":
            self.store.status = json.loads(body)["status"]
        elif call == "/experiments/get-by-name":
            return {"experiment": {"experiment_id": "1", "name": "moyun", "lifecycle_stage": "active"}}
        elif call in ("/runs/get", "/runs/create"):
            info = {"run_id": self.store.run_id, "experiment_id": "1", "status": self.store.status}
            info |= {"lifecycle_stage": "deleted" if self.store.deleted else "active", "start_time": 1}
            return {"run": {"info": info | {"artifact_uri": "mlflow-artifacts:/artifacts"}}}
        return {}

    def reply(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""
