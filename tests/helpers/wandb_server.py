"""A local server for tests of the W&B tracker. It implements the part of W&B's API that a training run calls: login,
runs, metrics and files.

The real client (``wandb-core``) reports to this server, and ``wandb sync`` uploads to it. So a test sees the data that
W&B would receive.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from helpers.loopback import serving

KEY = "0123456789abcdef0123456789abcdef01234567"


class WandbServer:
    """The state of the server: what it has received."""

    def __init__(self, refuses: bool = False) -> None:
        self.refuses, self.url = refuses, ""
        self.runs: dict[str, dict[str, Any]] = {}
        self.operations: list[str] = []

    def run(self, name: str) -> dict[str, Any]:
        empty = {"history": [], "files": {}, "artifacts": [], "exit": None, "config": {}, "preempting": False}
        return self.runs.setdefault(name, empty)

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        self.operations.append(operation)
        entity = {"id": "e", "name": "me", "__typename": "Entity"}
        if operation == "Viewer":
            viewer = {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
            return {"viewer": viewer, "serverInfo": None}
        if operation == "UpsertBucket":
            run = self.run(variables["name"])
            for key in ("groupName", "displayName", "tags", "project", "jobType"):
                run[key] = variables.get(key) or run.get(key)
            run["config"] |= json.loads(variables.get("config") or "{}")
            project = {"id": "p", "name": variables.get("project"), "entity": entity}
            bucket = {"id": "b", "name": variables["name"], "displayName": run["displayName"], "sweepName": None}
            bucket |= {"historyLineCount": len(run["history"]), "project": project, "config": "{}"}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if operation == "RunResumeStatus":
            return {"model": {"id": "p", "name": "p", "entity": entity, "bucket": self._resumed(variables)}}
        if operation == "CreateRunFiles":
            files = [
                {"name": name, "uploadUrl": f"{self.url}/put/{variables['run']}/{name}"} for name in variables["files"]
            ]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        if operation == "CreateArtifact":  # COMMITTED: the files are there already, so the client uploads none
            asked = variables["input"]
            self.run(asked["runName"])["artifacts"].append(asked)
            sequence = {"id": "s", "latestArtifact": None}
            return {"createArtifact": {"artifact": {"id": "a", "state": "COMMITTED", "artifactSequence": sequence}}}
        return {"project": None}

    def _resumed(self, variables: dict[str, Any]) -> dict[str, Any] | None:
        name = variables["name"]
        if name not in self.runs:
            return None
        run = self.runs[name]
        last = run["history"][-1:]
        return {
            "id": "b", "name": name, "historyLineCount": len(run["history"]), "eventsLineCount": 0, "logLineCount": 0,
            "historyTail": json.dumps([json.dumps(line) for line in last]), "eventsTail": "[]",
            "summaryMetrics": json.dumps(last[0] if last else {}), "displayName": run["displayName"],
            "config": json.dumps(run["config"]), "wandbConfig": "{\"t\": 1}", "tags": run["tags"] or [],
        }  # fmt: skip

    def reply(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, Any]:
        if self.refuses:
            return 401, {"errors": [{"message": "invalid API key"}]}
        if method == "PUT":
            _, _, run, name = path.split("/", 3)
            self.run(run)["files"][name] = body
        elif path.startswith("/graphql"):
            asked = json.loads(body)
            named = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
            operation = asked.get("operationName") or (named[1] if named else "")
            return 200, {"data": self.answer(operation, asked.get("variables") or {})}
        elif stream := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", path):
            self._stream(self.run(stream[1]), json.loads(body))
        return 200, {}

    def _stream(self, run: dict[str, Any], sent: dict[str, Any]) -> None:
        for name, part in (sent.get("files") or {}).items():
            lines = [json.loads(line) for line in part["content"]] if name.endswith((".jsonl", ".json")) else []
            if name == "wandb-history.jsonl":
                run["history"][part["offset"] :] = lines
            elif name == "wandb-summary.json":
                run["summary"] = lines[-1]
        run["preempting"] |= bool(sent.get("preempting"))
        if sent.get("complete"):
            run["exit"] = sent.get("exitcode")


@contextmanager
def wandb_server(refuses: bool = False) -> Iterator[WandbServer]:
    """Context with a server; ``refuses``: it accepts no key."""
    state = WandbServer(refuses)
    with serving(state.reply) as url:
        state.url = url
        yield state
