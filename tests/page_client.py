"""A visitor of the page of app.py without a browser: it sends over HTTP what a browser would, and more."""

import io
import json
from typing import Any

from PIL import Image

API = "/gradio_api"


class Client:
    """A session of the page, by boxes' labels.

    Args:
        http: an httpx client, or starlette's TestClient.
        session: its name.
    """

    def __init__(self, http: Any, session: str) -> None:
        self.http, self.session = http, session
        self.config = http.get("/config").json()
        self.boxes = {block["id"]: block for block in self.config["components"]}

    def events(self, box: str, event: str) -> list[dict[str, Any]]:
        """The handlers of an event of a box, which has this label, value or elem_id."""
        named = {i for i, b in self.boxes.items() if box in (b["props"].get(k) for k in ("label", "value", "elem_id"))}
        return [e for e in self.config["dependencies"] if any(i in named and name == event for i, name in e["targets"])]

    def values(self, event: dict[str, Any], typed: dict[str, Any]) -> list[Any]:
        """What a page sends for a handler: what is typed, by label, and elsewhere what the boxes hold."""
        props = [self.boxes[i]["props"] for i in event["inputs"]]
        return [typed.get(p.get("label"), p.get("value")) for p in props]

    def body(self, event: dict[str, Any], typed: dict[str, Any]) -> dict[str, Any]:
        return {
            "content": json.dumps(  # httpx itself refuses NaN
                {"data": self.values(event, typed), "fn_index": event["id"], "session_hash": self.session}
            ),
            "headers": {"content-type": "application/json"},
        }

    def upload(self, name: str, content: bytes) -> str:
        """Where a file is then."""
        return self.http.post(f"{API}/upload", files={"files": (name, content)}).json()[0]

    def direct(self, box: str, event: str, **typed: Any) -> Any:
        """What a handler answers that does not wait in the queue: (status, answer)."""
        (found, *_) = self.events(box, event)
        answer = self.http.post(f"{API}/run/predict", **self.body(found, typed))
        return answer.status_code, answer.json()

    def choose(self, label: str, name: str, content: bytes) -> tuple[int, Any]:
        """Give a file to the page."""
        file = {"path": self.upload(name, content), "meta": {"_type": "gradio.FileData"}, "orig_name": name}
        return self.direct(label, "upload", **{label: file})

    def join(self, **typed: Any) -> None:
        """Click Generate."""
        (event,) = self.events("Generate", "click")
        editor = {"background": None, "layers": [], "composite": None}
        body = self.body(event, {"Paint here": editor} | typed)
        assert self.http.post(f"{API}/queue/join", **body).status_code == 200

    def generate(self, **typed: Any) -> str:
        """What the page says after Generate is clicked."""
        said = ""
        self.join(**typed)
        with self.http.stream("GET", f"{API}/queue/data", params={"session_hash": self.session}) as stream:
            for line in stream.iter_lines():
                message = json.loads(line.removeprefix("data: ")) if line else {}
                if message.get("msg") == "process_completed":
                    output = message["output"]
                    said = output["data"][-1] if message["success"] else str(output["error"])
        return said


def picture() -> bytes:
    Image.new("L", (8, 8), 90).save(content := io.BytesIO(), "png")
    return content.getvalue()
