"""tools/get_data.py against a server of this test's own, and what it says without one; tools/parquet_to_jsonl.py."""

import contextlib
import http.server
import importlib.util
import io
import json
import sys
import tempfile
import threading
import unittest
import zipfile
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

import get_data  # noqa: E402
import parquet_to_jsonl  # noqa: E402

needs_pyarrow = unittest.skipUnless(importlib.util.find_spec("pyarrow"), "the module pyarrow is not installed")


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` by path, in ranges; cuts answers short after `cut` bytes while that is set."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.cut, self.requests, self.tag = {}, None, [], '"one"'
        self.announces_length = True


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, content = self.server, self.server.content.get(self.path)
        wanted = self.headers.get("Range")
        server.requests.append((self.path, wanted))
        if content is None:
            return self.send_error(404)
        begin = 0
        if wanted and self.headers.get("If-Range") == server.tag:
            begin = int(wanted.removeprefix("bytes=").rstrip("-"))
            if begin >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if server.tag:
            self.send_header("ETag", server.tag)
        body = content[begin:]
        if server.announces_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if server.cut is None else body[:server.cut])
        return None

    def log_message(self, *_):
        pass


class GetData(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.out = Path(scratch.name)
        self.server = Server()
        thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        self.addCleanup(self.server.server_close)
        self.addCleanup(thread.join)
        self.addCleanup(self.server.shutdown)
        for name in get_data.DATA_SETS:
            for file in get_data.DATA_SETS[name].files:
                self.server.content["/" + file.url.split("/", 3)[3]] = f"{name} {file.name}\n".encode() * 50

    def run_tool(self, *arguments, expect=0):
        out, err = io.StringIO(), io.StringIO()
        url = f"http://127.0.0.1:{self.server.server_address[1]}"
        hosts = {"/".join(file.url.split("/")[:3]) for data in get_data.DATA_SETS.values() for file in data.files}
        mirrors = [option for host in sorted(hosts) for option in ("--replace", f"{host}={url}")]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = get_data.main([*arguments, "--out", str(self.out), *mirrors])
        self.assertEqual(code, expect, out.getvalue() + err.getvalue())
        return out.getvalue() + err.getvalue()

    def content_of(self, file):
        return self.server.content["/" + file.url.split("/", 3)[3]]

    def test_dry_run_names_every_address_and_asks_nobody(self):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            self.assertEqual(get_data.main(["all", "--dry-run", "--out", str(self.out)]), 0)
        files = [(name, file) for name, data in get_data.DATA_SETS.items() for file in data.files]
        self.assertGreater(len(files), 20)
        for name, file in files:
            size = "size not known here" if file.size is None else f"{file.size:,} bytes"
            self.assertIn(f"  {file.url} -> {self.out / name / file.name} ({size})\n", out.getvalue())
        self.assertEqual(self.server.requests, [])
        self.assertEqual(list(self.out.iterdir()), [])
        self.assertEqual(len({(name, file.name) for name, file in files}), len(files), "two files of one name")

    def test_without_a_name_lists_them(self):
        listed = self.run_tool()
        for name in get_data.DATA_SETS:
            self.assertIn(name, listed)
        self.assertIn("c4-validation", self.run_tool("c5", expect=2))

    def test_fetches_once(self):
        said = self.run_tool("gsm8k")
        self.assertIn("it has changed", said)  # the size noted is that of the public file
        for file in get_data.DATA_SETS["gsm8k"].files:
            self.assertEqual((self.out / "gsm8k" / file.name).read_bytes(), self.content_of(file))
        self.assertEqual(sorted(path.name for path in (self.out / "gsm8k").iterdir()), ["test.jsonl", "train.jsonl"])
        asked = len(self.server.requests)
        self.assertIn("is there", self.run_tool("gsm8k"))
        self.assertEqual(len(self.server.requests), asked)

    def test_goes_on_where_it_was_cut(self):
        file = get_data.DATA_SETS["fineweb"].files[0]
        self.server.cut = 100
        said = self.run_tool("fineweb", expect=2)
        self.assertIn(f"ended after 100 of {len(self.content_of(file))} bytes", said.replace(",", ""))
        self.assertFalse((self.out / "fineweb" / file.name).exists())
        self.assertIn("100 bytes are there", self.run_tool("fineweb", "--dry-run"))
        self.server.cut = None
        self.run_tool("fineweb")
        self.assertEqual(self.server.requests[-1][1], "bytes=100-")
        self.assertEqual((self.out / "fineweb" / file.name).read_bytes(), self.content_of(file))
        self.assertEqual(len(list((self.out / "fineweb").iterdir())), 1)

    def test_names_what_was_fetched_whole_but_not_named(self):
        """Cut off between the last byte and the name; and the same where the server has less by now."""
        file = get_data.DATA_SETS["fineweb"].files[0]
        path = self.out / "fineweb" / file.name
        for name, content in (("whole", self.content_of(file)), ("more than the server has", self.content_of(file) + b"x")):
            with self.subTest(name):
                self.server.cut = 100
                path.unlink(missing_ok=True)
                self.run_tool("fineweb", expect=2)
                self.server.cut = None
                Path(f"{path}.part").write_bytes(content)
                self.run_tool("fineweb")
                self.assertEqual(path.read_bytes(), self.content_of(file))
                self.assertEqual(len(list(path.parent.iterdir())), 1)

    def test_an_end_that_nobody_announced_is_held_to_the_noted_size(self):
        self.server.announces_length = False
        self.assertIn("announced no length; 749,738 are noted", self.run_tool("gsm8k", expect=2))
        self.assertFalse((self.out / "gsm8k" / "test.jsonl").exists())

    def test_what_is_no_server_or_no_address(self):
        for mirror, word in (("mirror.local", "is no address"), ("http://a b", "is no address"), ("http://127.0.0.1:1", "check the network")):
            with self.subTest(mirror), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
                host = "/".join(get_data.DATA_SETS["gsm8k"].files[0].url.split("/")[:3])
                self.assertEqual(get_data.main(["gsm8k", "--out", str(self.out), "--replace", f"{host}={mirror}"]), 2)
                self.assertIn(word, err.getvalue())
                self.assertEqual(len(err.getvalue().splitlines()), 1)

    def test_begins_anew_where_the_file_has_changed_or_cannot_be_told(self):
        file = get_data.DATA_SETS["fineweb"].files[0]
        for before, after in (('"one"', '"two"'), ("", "")):
            with self.subTest(before):
                path = self.out / "fineweb" / file.name
                path.unlink(missing_ok=True)
                self.server.cut, self.server.tag = 100, before
                self.run_tool("fineweb", expect=2)
                self.server.content["/" + file.url.split("/", 3)[3]] = b"new " * 99
                self.server.cut, self.server.tag = None, after
                self.run_tool("fineweb")
                self.assertEqual(path.read_bytes(), b"new " * 99)

    def test_what_is_not_there(self):
        self.server.content.clear()
        self.assertIn("404", self.run_tool("hellaswag", expect=2))
        self.assertIn("must be FROM=TO", self.run_tool("hellaswag", "--replace", "x", expect=2))

    def test_joins_piqa(self):
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            for split, labels in (("train", "1\n"), ("dev", "0\n1\n")):
                lines = [json.dumps({"goal": f"{split} \u00e9 {i}", "sol1": "a", "sol2": "b"}) for i in range(len(labels.split()))]
                file.writestr(f"physicaliqa-train-dev/{split}.jsonl", "\n".join(lines) + "\n")
                file.writestr(f"physicaliqa-train-dev/{split}-labels.lst", labels)
        path = "/" + get_data.DATA_SETS["piqa"].files[0].url.split("/", 3)[3]
        self.server.content[path] = archive.getvalue()
        self.run_tool("piqa")
        found = [json.loads(line) for line in (self.out / "piqa" / "dev.jsonl").read_text().splitlines()]
        self.assertEqual(found, [{"goal": f"dev \u00e9 {i}", "sol1": "a", "sol2": "b", "label": i} for i in (0, 1)])
        self.server.content[path] = b"no archive"
        (self.out / "piqa" / "physicaliqa-train-dev.zip").unlink()
        self.assertIn(f"error: {self.out / 'piqa' / 'physicaliqa-train-dev.zip'}: File is not a zip file", self.run_tool("piqa", expect=2))

    @needs_pyarrow
    def test_parquet_becomes_lines(self):
        import pyarrow
        import pyarrow.parquet
        rows = [{"question": "W\u00e9?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"}]
        path = self.out / "arc.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        with contextlib.redirect_stdout(io.StringIO()):
            self.assertEqual(parquet_to_jsonl.main([str(path)]), 0)
        self.assertEqual([json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()], rows)
        with contextlib.redirect_stderr(io.StringIO()) as err:
            self.assertEqual(parquet_to_jsonl.main([str(path)]), 2)
        self.assertIn("is there already", err.getvalue())

    @needs_pyarrow
    def test_parquet_that_is_cut_or_has_what_json_has_not(self):
        import datetime
        import pyarrow
        import pyarrow.parquet

        def convert(name, rows, code, cut=None):
            path = self.out / name
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
            path.write_bytes(path.read_bytes()[:cut])
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
                self.assertEqual(parquet_to_jsonl.main([str(path)]), code)
            return path.with_suffix(".jsonl"), err.getvalue()
        made, _ = convert("nan.parquet", [{"score": float("nan"), "all": [1.5, float("inf")]}], 0)
        self.assertEqual(made.read_text(), '{"score": null, "all": [1.5, null]}\n')
        made, said = convert("cut.parquet", [{"a": "b"}], 2, cut=50)
        self.assertIn("cannot be read as Parquet", said)
        made, said = convert("time.parquet", [{"a": datetime.datetime(2026, 1, 1)}], 2)
        self.assertIn("a column has no form in JSON", said)
        self.assertEqual(sorted(path.suffix for path in self.out.iterdir()), [".jsonl", ".parquet", ".parquet", ".parquet"])


if __name__ == "__main__":
    unittest.main()
