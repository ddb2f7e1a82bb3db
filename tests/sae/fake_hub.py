"""A Hugging Face hub on 127.0.0.1 that speaks what huggingface_hub says: repositories, LFS, commits, downloads."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse

TOKEN = "hf_of_the_tests"


class FakeHub:
    """`repos` maps an id to its commits, each a dict of path -> bytes; `requests` are the (method, path) of each."""

    def __init__(self):
        self.repos: dict[str, list[dict[str, bytes]]] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.fail_commits = False
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def files(self, repo: str) -> dict[str, bytes]:
        return self.repos[repo][-1]

    @contextlib.contextmanager
    def running(self):
        thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.server.shutdown()
            self.server.server_close()
            thread.join()

    def commit(self, repo: str, body: bytes) -> str:
        files = dict(self.files(repo))
        for line in body.splitlines():
            row = json.loads(line)
            kind, value = row["key"], row["value"]
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            elif kind == "deletedFile":
                del files[value["path"]]
        self.repos[repo].append(files)
        return oid(repo, len(self.repos[repo]) - 1)

    def _handler(hub):
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def answer(self, status: int, body: bytes = b"", headers: dict | None = None, head: bool = False) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                if not head:
                    self.wfile.write(body)

            def json(self, value, status: int = 200) -> None:
                self.answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

            def refuse(self, status: int, code: str, words: str, head: bool = False) -> None:
                self.answer(status, b"{}", {"X-Error-Code": code, "X-Error-Message": words}, head)

            def handle_one(self, method: str) -> None:
                path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
                hub.requests.append((method, path))
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                writes = method in ("POST", "PUT")
                allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}" or path.startswith("/lfs/")
                if writes and not allowed:
                    return self.refuse(401, "", "Invalid credentials")
                if method == "POST" and path == "/api/repos/create":
                    wanted = json.loads(body)
                    repo = "/".join(filter(None, (wanted.get("organization"), wanted["name"])))
                    if repo in hub.repos:
                        words = "You already created this model repo"
                        return self.json({"error": words, "url": f"{hub.url}/{repo}"}, 409)
                    hub.repos[repo] = [{".gitattributes": b"*.safetensors filter=lfs\n"}]
                    return self.json({"url": f"{hub.url}/{repo}"})
                if method == "POST" and path == "/api/validate-yaml":
                    return self.json({"errors": [], "warnings": []})
                if method == "PUT" and path.startswith("/lfs/"):
                    assert hashlib.sha256(body).hexdigest() == path[5:]
                    hub.objects[path[5:]] = body
                    return self.answer(200)
                if method == "POST" and path.endswith(".git/info/lfs/objects/batch"):
                    rows = json.loads(body)["objects"]
                    actions = [{"upload": {"href": f"{hub.url}/lfs/{row['oid']}"}} for row in rows]
                    objects = [{**row, "actions": action} for row, action in zip(rows, actions)]
                    return self.json({"transfer": "basic", "objects": objects})
                if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w+)/([^/]+))?", path):
                    repo, verb, revision = match.groups()
                    if repo not in hub.repos:
                        return self.refuse(404, "RepoNotFound", "Repository not found")
                    return self.model(method, repo, verb, revision, body)
                if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                    return self.resolve(method, *match.groups())
                return self.refuse(404, "", f"no such address {path}")

            def model(self, method, repo, verb, revision, body) -> None:
                if method == "POST" and verb == "preupload":
                    rows = json.loads(body)["files"]
                    lfs = {row["path"]: row["path"].endswith(".safetensors") for row in rows}
                    answer = [
                        {"path": name, "uploadMode": "lfs" if big else "regular", "shouldIgnore": False}
                        for name, big in lfs.items()
                    ]
                    return self.json({"files": answer})
                if method == "POST" and verb == "commit":
                    if hub.fail_commits:
                        return self.refuse(403, "", "you may not write here")
                    number = hub.commit(repo, body)
                    return self.json({"success": True, "commitOid": number, "commitUrl": commit_url(hub, repo, number)})
                at = find(hub, repo, revision or "main")
                if at is None:
                    return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
                files = hub.repos[repo][at]
                if verb == "tree":
                    rows = [{"type": "file", "path": p, "size": len(d), **blob(p, d)} for p, d in sorted(files.items())]
                    return self.json(rows)
                siblings = [{"rfilename": name} for name in sorted(files)]
                return self.json({"id": repo, "modelId": repo, "sha": oid(repo, at), "siblings": siblings, "tags": []})

            def resolve(self, method, repo, revision, path) -> None:
                head = method == "HEAD"
                if repo not in hub.repos:
                    return self.refuse(404, "RepoNotFound", "Repository not found", head)
                at = find(hub, repo, revision)
                if at is None or path not in hub.repos[repo][at]:
                    return self.refuse(404, "EntryNotFound", "Entry not found", head)
                data = hub.repos[repo][at][path]
                etag = blob(path, data)["oid"]
                self.answer(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": oid(repo, at)}, head)

            def do_GET(self):
                self.handle_one("GET")

            def do_HEAD(self):
                self.handle_one("HEAD")

            def do_POST(self):
                self.handle_one("POST")

            def do_PUT(self):
                self.handle_one("PUT")

        return Handler


def oid(repo: str, number: int) -> str:
    return hashlib.sha1(f"{repo} {number}".encode()).hexdigest()


def find(hub: FakeHub, repo: str, revision: str) -> int | None:
    count = len(hub.repos[repo])
    if revision == "main":
        return count - 1
    return next((i for i in range(count) if oid(repo, i) == revision), None)


def blob(path: str, data: bytes) -> dict:
    if path.endswith(".safetensors"):
        sha = hashlib.sha256(data).hexdigest()
        return {"oid": sha, "lfs": {"oid": sha, "size": len(data), "pointerSize": 130}}
    return {"oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}


def commit_url(hub: FakeHub, repo: str, number: str) -> str:
    return f"{hub.url}/{repo}/commit/{number}"
