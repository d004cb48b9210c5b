"""`log.tensorboard`: the event files hold the numbers of metrics.jsonl, and a resumed run shows no step twice.

The reader here follows the published formats: TFRecord frames (length, its masked CRC-32C, bytes, theirs) around protocol
buffers of which Event and Summary are read.
"""

import json
import struct

import harness
from harness import CliTest


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data):
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records(raw):
    while raw:
        length, check = struct.unpack("<QI", raw[:12])
        assert check == masked(raw[:8]), "checksum of a length"
        data, (check,) = raw[12:12 + length], struct.unpack("<I", raw[12 + length:16 + length])
        assert check == masked(data), "checksum of a record"
        yield data
        raw = raw[16 + length:]


def fields(data):
    """[(number, value)]: integers, floats and bytes by their wire type."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        number, kind = key >> 3, key & 7
        if kind == 0:
            yield number, varint()
        elif kind == 2:
            length = varint()
            yield number, data[at:at + length]
            at += length
        else:
            size, form = {1: (8, "<d"), 5: (4, "<f")}[kind]
            yield number, struct.unpack(form, data[at:at + size])[0]
            at += size


def events(path):
    """[(step, {tag: value} or "start" or the file's version)] of one file, in its order."""
    out = []
    for record in records(path.read_bytes()):
        event = dict(fields(record))
        assert event[1] > 1.6e9, "a wall time"
        if 3 in event:
            out.append((event[2], event[3].decode()))
        elif 7 in event:
            assert dict(fields(event[7])) == {1: 1}, "SessionLog.START"
            out.append((event[2], "start"))
        else:
            values = [dict(fields(value)) for number, value in fields(event[5]) if number == 1]
            out.append((event[2], {value[1].decode(): value[2] for value in values}))
    return out


def flat(value, name=""):
    """The numbers of a line of metrics.jsonl by their tags."""
    if isinstance(value, (int, float)):
        return {name: value}
    out = {}
    if isinstance(value, dict):
        for key, member in value.items():
            if name or key != "step":
                out |= flat(member, f"{name}/{key}" if name else key)
    elif isinstance(value, list):
        for element in value:
            if isinstance(element, dict):
                figures = {key: member for key, member in element.items() if key != "layer"}
                out |= flat(figures, f"{name}/{element['layer']}")
    return out


class TensorBoard(CliTest):
    def files(self, run):
        return sorted((self.dir / run / "tensorboard").glob("events.out.tfevents.*"))

    def assert_scalars(self, shown, metrics):
        self.assertEqual(list(shown), [line["step"] for line in metrics])
        for line in metrics:
            expected = flat(line)
            self.assertEqual(shown[line["step"]].keys(), expected.keys())
            for tag, value in expected.items():  # TensorBoard keeps float32
                self.assertEqual(shown[line["step"]][tag], struct.unpack("<f", struct.pack("<f", value))[0], tag)

    def test_checksum(self):
        self.assertEqual(crc32c(b"123456789"), 0xE3069283)  # the check value of CRC-32C

    def test_every_number_of_every_step(self):
        self.ok("train", self.write_config(log__tensorboard=True, train__eval_every=10), "--out", "run")
        (path,) = self.files("run")
        version, *steps = events(path)
        self.assertEqual(version, (0, "brain.Event:2"))
        self.assert_scalars(dict(steps), self.metrics("run"))
        self.assertEqual(len(steps), harness.STEPS)
        self.assertLessEqual({"loss", "gini", "layers/0/gini", "layers/1/min_max", "val_loss", "val_balance/gini",
                              "val_loss_by_domain/default"}, steps[9][1].keys())

    def test_none_unless_asked_for(self):
        self.ok("train", self.write_config(), "--out", "run")
        self.assertFalse((self.dir / "run" / "tensorboard").exists())

    def test_a_resumed_run_shows_no_step_twice(self):
        config = self.write_config(log__tensorboard=True)
        self.ok("train", config, "--out", "run")
        self.ok("train", config, "--out", "run", "--resume", self.checkpoints("run")[0])
        first, second = self.files("run")
        goes_on_from = self.checkpoint_step(self.checkpoints("run")[0])
        self.assertEqual(events(second)[:2], [(0, "brain.Event:2"), (goes_on_from + 1, "start")])
        shown = {}
        for path in (first, second):
            for step, what in events(path):
                if what == "start":
                    shown = {old: values for old, values in shown.items() if old < step}
                elif isinstance(what, dict):
                    self.assertNotIn(step, shown)
                    shown[step] = what
        self.assert_scalars(shown, self.metrics("run"))

    def checkpoint_step(self, path):
        return json.loads((path / "run.json").read_text())["step"]

    def test_a_place_that_cannot_be_written(self):
        (self.dir / "run").mkdir()
        (self.dir / "run" / "tensorboard").write_text("a file\n")
        self.fails(2, "train", self.write_config(log__tensorboard=True), "--out", "run", names=["tensorboard"])


if __name__ == "__main__":
    harness.main()
