"""A server that speaks as much of vLLM's HTTP as the client uses; as a program, in place of ``vllm serve``.

The answer to a picture is chosen by its first bytes' digest, so that tests know it; the environment variable
FAKE_VLLM tells it to misbehave: "never" (not healthy), "dies" (ends at once), "child" (leaves a child
process behind).
"""

import argparse
import base64
import hashlib
import json
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BOX = "[0.1, 0.2, 0.5, 0.6]"


def handler(
    model: str, answer=lambda data: BOX, status=lambda data: 200, delay_s: float = 0.0, healthy=lambda: True
):
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *unused):
            pass

        def reply(self, status, body):
            text = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def do_GET(self):
            if self.path == "/health":
                self.reply(200 if healthy() else 503, b"")
            elif self.path == "/v1/models":
                self.reply(200, {"data": [{"id": model}]})
            else:
                self.reply(404, {"error": {"message": "not found"}})

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/v1/chat/completions" and asked["temperature"] == 0
            if asked["model"] != model:
                return self.reply(
                    404, {"error": {"message": f"The model `{asked['model']}` does not exist."}}
                )
            picture, question = asked["messages"][0]["content"]
            assert question["text"].startswith("Where is")
            data = base64.b64decode(picture["image_url"]["url"].split(",", 1)[1])
            assert picture["image_url"]["url"].startswith("data:image/webp;base64,")
            time.sleep(delay_s)
            if status(data) != 200:
                return self.reply(status(data), {"error": {"message": "the server\nrefused"}})
            reply = answer(data)
            if isinstance(reply, bytes):
                return self.reply(200, reply)
            return self.reply(
                200, {"choices": [{"message": {"content": reply}}], "usage": {"completion_tokens": 24}}
            )

    return Handler


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("verb")
    parser.add_argument("folder")
    for name in ("--host", "--port", "--served-model-name", "--max-model-len", "--gpu-memory-utilization"):
        parser.add_argument(name, required=True)
    given, mode = parser.parse_args(), os.environ.get("FAKE_VLLM", "")
    print("Model loading took 2.5 GiB memory", flush=True)
    print("Available KV cache memory: 10.0 GiB", flush=True)
    if mode == "dies":
        print("ValueError: no such quantization", flush=True)
        sys.exit(3)
    if mode == "child":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print(f"child {child.pid}", flush=True)
    server = ThreadingHTTPServer(
        (given.host, int(given.port)), handler(given.served_model_name, healthy=lambda: mode != "never")
    )
    server.serve_forever()


if __name__ == "__main__":
    main()
