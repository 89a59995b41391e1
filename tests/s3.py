"""An S3 server on this machine (moto's), which fails where a test wants it to."""

import socket
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from moto.core import DEFAULT_ACCOUNT_ID
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.models import s3_backends
from werkzeug.serving import WSGIRequestHandler, make_server

KEY, SECRET = "AKIATESTTESTTESTTEST", "s3cr3t-that-must-not-leak"
SILENCE_S = 5.0


class Server:
    """The server; `fail` says what becomes of the next requests for an object."""

    def __init__(self):
        self.has_conditions = True
        self.asked: Counter[tuple[str, str]] = Counter()
        self._plans: dict[tuple[str, str], list] = {}
        self._lock = threading.Lock()
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(
            "127.0.0.1", 0, self._answer, threaded=True, request_handler=_Quiet
        )
        self.backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
        self.url = f"http://127.0.0.1:{self._server.port}"

    @contextmanager
    def running(self):
        thread = threading.Thread(target=self._server.serve_forever)
        thread.start()
        yield self
        self._server.shutdown()
        thread.join()

    def environment(self):
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def fail(self, method, path, *answers):
        """Answers to the next requests: a status, "reset", "silence", "ok", "lose": do it and
        hang up, or "ignore": say that it was deleted."""
        self._plans[method, path] = list(answers)

    def reset(self):
        self._plans.clear()
        self.asked.clear()

    def upload(self, folder, place):
        """Put a local folder to `bucket/prefix`, past the requests: those take 10 ms each."""
        bucket, _, prefix = place.partition("/")
        for path in Path(folder).rglob("*"):
            if path.is_file():
                name = path.relative_to(folder).as_posix()
                self.backend.put_object(bucket, f"{prefix}/{name}", path.read_bytes())

    def objects(self, place):
        """All objects below `bucket/prefix`, by their path there, to bytes."""
        bucket, _, prefix = place.partition("/")
        keys = self.backend.buckets[bucket].keys
        return {
            name[len(prefix) + 1 :]: keys[name].value
            for name in sorted(keys)
            if name.startswith(f"{prefix}/")
        }

    def _answer(self, environ, start_response):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        with self._lock:
            self.asked[method, path] += 1
            plan = self._plans.get((method, path))
            action = plan.pop(0) if plan else "ok"
        if not self.has_conditions:
            environ = {name: v for name, v in environ.items() if not name.startswith("HTTP_IF_")}
        if action == "silence":
            time.sleep(SILENCE_S)
            action = "reset"
        if action == "lose":
            list(self._app(environ, lambda *_: None))
            action = "reset"
        if action == "reset":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError
        if action == "ok":
            return self._app(environ, start_response)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        status, body = (200, b"<DeleteResult/>") if action == "ignore" else (action, b"")
        start_response(f"{status} planned", [("Content-Length", str(len(body)))])
        return [body]


class _Quiet(WSGIRequestHandler):
    def log(self, *_):
        pass
