"""An audio LLM on 127.0.0.1 that speaks both wires, checks what it is sent, and misbehaves as told.

It hears for real: the name it gives is that of the loudest whole frequency in the clips, so that rows can be foretold.
"""

import base64
import contextlib
import hashlib
import http.server
import io
import json
import re
import threading
import time
from collections import Counter

import numpy as np
import soundfile

KEY = "sk-of-the-tests-0123456789"


class LLMServer:
    """`behave(task, attempt, content)` says how a question is met: "" for properly, or a name in `Handler.meet`;
    `content` is a hash of it.

    `paid` counts the whole 200 replies for each content, `bodies` keeps the requests, `most` is how many were in flight
    at once, `said` is what was last heard and read. `present(sound, name)` says whether a name is heard, where that is
    asked; a sound is the hash of its file and its frequency.
    """

    def __init__(self, behave=lambda task, attempt, content: "", key=KEY, delay=0.0):
        self.behave, self.key, self.delay = behave, key, delay
        self.paid, self.attempts, self.seen = Counter(), Counter(), Counter()
        self.bodies: list[dict] = []
        self.said = ""
        self.present = lambda sound, name: sound.split(" ", 1)[1] == name
        self.faults: list[str] = []  # of requests that are out of shape
        self.flight = self.most = 0
        self.lock = threading.Lock()
        self.hanging = threading.Event()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = False  # joined when it closes
        self.server.handle_error = lambda *_: None  # clients hang up on us
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    @contextlib.contextmanager
    def running(self):
        thread = threading.Thread(target=lambda: self.server.serve_forever(0.02), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.hanging.set()
            self.server.shutdown()
            self.server.server_close()
            thread.join()

    def settle(self):
        """Returns when nothing has arrived or been answered for a while."""
        before = None
        while before != (before := (self.flight, self.attempts.total(), self.paid.total())) or self.flight:
            time.sleep(0.2)

    def _handler(llm):
        class Handler(http.server.BaseHTTPRequestHandler):
            landed = False

            def log_message(self, *_):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with llm.lock:
                    llm.flight += 1
                    llm.most = max(llm.most, llm.flight)
                try:
                    self.meet(body)
                except Exception as error:
                    llm.faults.append(repr(error))
                    raise
                finally:
                    self.land()

            def land(self):
                """Before the answer goes, or the client's next request could come before this one counts as over."""
                with llm.lock:
                    llm.flight -= not self.landed
                    self.landed = True

            def meet(self, body):
                gemini = self.path.endswith(":generateContent")
                if self.key() != llm.key:
                    return self.answer(401, {"error": {"message": f"Incorrect API key provided: {self.key()}."}})
                turns = read_gemini(body) if gemini else read_openai(body)
                if not gemini and self.path != "/v1/chat/completions":
                    return self.answer(404, {"error": {"message": f"no such path {self.path}"}})
                content = hashlib.sha256(json.dumps([task_of(body), turns]).encode()).hexdigest()
                with llm.lock:
                    llm.bodies.append(body)
                    llm.said = json.dumps(turns)
                    llm.attempts[content] += 1
                    attempt = llm.attempts[content]
                time.sleep(llm.delay)
                repaired = len(turns) > 1
                how = llm.behave(task_of(body), attempt, content)
                with llm.lock:
                    llm.seen[how] += 1
                if how.startswith("429"):
                    after = {"Retry-After": how[4:]} if how[4:] else {}
                    return self.answer(429, {"error": {"message": "slow down"}}, after)
                if how.isdigit():
                    words = f"status {how} for key {self.key()}"
                    return self.answer(int(how), {"error": {"message": words}}, {"Location": llm.url + "/else"})
                if how == "paid out":
                    return self.answer(429, {"error": {"message": "no credit", "code": "insufficient_quota"}})
                if how == "no schema" and mode_of(body) == "json_schema":
                    return self.answer(400, {"error": {"message": "response_format json_schema is not supported"}})
                if how == "no format" and mode_of(body) != "prompt":
                    return self.answer(400, {"error": {"message": "response_format is not supported"}})
                if how == "filtered":
                    return self.answer(400, {"error": {"message": "not this", "code": "content_filter"}})
                if how == "hang":
                    llm.hanging.wait(30)
                    self.close_connection = True
                    return None
                if how == "hang up":
                    self.close_connection = True
                    return None
                text = json.dumps(reply_to(task_of(body), turns, llm.present))
                if how == "not json" or (how == "not json once" and not repaired):
                    text = 'I hear {"name": a piano'
                if how == "wrong" or (how == "wrong once" and not repaired):
                    text = text.replace('"confidence": 0.', '"confidence": 70.')
                if how == "chatty":
                    text = f"<think>{{}} or {{'a': 1}}?</think> Here you are:\n```json\n{text}\n``` {{}}"
                if how == "echo":
                    text = text.replace("hertz", f"hertz {self.key()}")
                refusal = "I cannot help with that" if how == "refuse" else ""
                value = (as_gemini if gemini else as_openai)(text, refusal, how)
                value["id"] = content
                if how == "garbage":
                    return self.answer(200, {"error": "upstream"})
                if how == "cut":
                    return self.answer(200, value, cut=True)
                with llm.lock:
                    llm.paid[content] += 1
                return self.answer(200, value)

            def key(self):
                return self.headers.get("x-goog-api-key") or self.headers.get("Authorization", "")[7:]

            def answer(self, status, value, headers=None, cut=False):
                self.land()
                data = json.dumps(value).encode()
                self.send_response(status)
                for name, text in {"Content-Length": str(len(data)), **(headers or {})}.items():
                    self.send_header(name, text)
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if cut else data)

        return Handler


def as_openai(text, refusal, how):
    message = {"role": "assistant", "content": None if refusal else text, "refusal": refusal or None}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "prompt_tokens_details": {"audio_tokens": 64}}
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}


def as_gemini(text, refusal, how):
    details = [{"modality": "TEXT", "tokenCount": 36}, {"modality": "AUDIO", "tokenCount": 64}]
    usage = {"promptTokenCount": 100, "candidatesTokenCount": 10, "promptTokensDetails": details}
    if refusal:
        return {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": usage}
    if how == "unsafe":
        return {"candidates": [{"finishReason": "SAFETY"}], "usageMetadata": usage}
    parts = [{"text": "let me think {", "thought": True}, {"text": text[:9]}, {"text": text[9:]}]
    return {
        "candidates": [{"content": {"role": "model", "parts": parts}, "finishReason": "STOP"}],
        "usageMetadata": usage,
    }


def task_of(body):
    text = json.dumps(body)
    return next(t for t, field in TASKS.items() if re.search(rf'\\?"{field}\\?": ?{{', text))


TASKS = {"detect": "present", "caption": "caption", "label": "concepts"}


def mode_of(body):
    if "contents" in body:
        generation = body["generationConfig"]
        if "responseSchema" in generation:
            return "json_schema"
        return "json_object" if generation.get("responseMimeType") == "application/json" else "prompt"
    return (body.get("response_format") or {"type": "prompt"})["type"]


def read_openai(body):
    """The turns as [role, [text or hash and frequency, ...]]; a request that is out of shape is an AssertionError."""
    system, *turns = body["messages"]
    assert system["role"] == "system" and isinstance(system["content"], str) and body["model"] == "a-model"
    assert body["stream"] is False and set(body) <= {
        "model", "stream", "messages", "temperature", "seed", "response_format"
    }  # fmt: skip
    if mode_of(body) == "json_schema":
        assert body["response_format"]["json_schema"]["strict"] is True
        check_schema(body["response_format"]["json_schema"]["schema"])
    result = []
    for turn in turns:
        if turn["role"] == "assistant":
            result.append(["assistant", [turn["content"]]])
            continue
        parts = []
        for part in turn["content"]:
            if part["type"] == "input_audio":
                assert part["input_audio"]["format"] == "wav"
                parts.append(heard(part["input_audio"]["data"]))
            else:
                assert set(part) == {"type", "text"}
                parts.append(part["text"])
        result.append([turn["role"], parts])
    return result


def read_gemini(body):
    assert set(body) == {"contents", "systemInstruction", "generationConfig"}
    assert isinstance(body["systemInstruction"]["parts"][0]["text"], str)
    if mode_of(body) == "json_schema":
        schema = body["generationConfig"]["responseSchema"]
        assert schema["type"] == "OBJECT" and schema["property_ordering"] == list(schema["properties"])
        assert "additionalProperties" not in json.dumps(schema)
    result = []
    for turn in body["contents"]:
        assert turn["role"] in ("user", "model")
        parts = []
        for part in turn["parts"]:
            if "inlineData" in part:
                assert part["inlineData"]["mime_type"] == "audio/wav"
                parts.append(heard(part["inlineData"]["data"]))
            else:
                parts.append(part["text"])
        result.append([turn["role"], parts])
    return result


def check_schema(schema):
    """What OpenAI's strict mode wants of an object."""
    assert schema["additionalProperties"] is False and schema["required"] == list(schema["properties"])
    assert not set(schema) - {"type", "description", "properties", "required", "additionalProperties"}


def heard(data):
    """Hash and loudest frequency of a wav file in base64."""
    file = base64.b64decode(data, validate=True)
    audio, rate = soundfile.read(io.BytesIO(file))
    assert soundfile.info(io.BytesIO(file)).format == "WAV" and audio.ndim == 1
    loudest = np.abs(np.fft.rfft(audio)).argmax() * rate / len(audio)
    return f"{hashlib.sha256(file).hexdigest()} {loudest:.0f} hertz"


def reply_to(task, turns, present):
    words = turns[0][1]
    found = [hertz for part in words for hertz in re.findall(r"\d+ hertz", part)]
    if task == "detect":
        sound, wanted = words
        return {"present": present(sound, wanted.removeprefix("Description: ")), "confidence": 0.8}
    if task == "caption":
        return {"caption": f"A sine of {found[0]}."}
    name = Counter(found).most_common(1)[0][0]
    concepts = [{"name": name, "confidence": 0.5}, {"name": "a sine", "confidence": 0.25}]
    return {"concepts": concepts, "description": f"All clips are {name}.", "name": f" {name}.", "confidence": 0.75}
