"""Reading SoundFont 2 files: which recorded sample, at which pitch and envelope, sounds for a key.

Source: SoundFont Technical Specification 2.04 (RIFF layout §5-7, generators §8.1.2). Every length and index in the file
is checked before it is used, because fonts come from anywhere.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from musae_jax.errors import MusaeError

_PRESET = np.dtype([("name", "S20"), ("program", "<u2"), ("bank", "<u2"), ("bag", "<u2"), ("unused", "<u4", 3)])
_INSTRUMENT = np.dtype([("name", "S20"), ("bag", "<u2")])
_BAG = np.dtype([("generator", "<u2"), ("modulator", "<u2")])
_GENERATOR = np.dtype([("kind", "<u2"), ("amount", "<i2")])
_SAMPLE = np.dtype(
    [
        ("name", "S20"),
        *((name, "<u4") for name in ("start", "end", "loop_start", "loop_end", "rate")),
        *(("root", "u1"), ("correction", "i1"), ("link", "<u2"), ("type", "<u2")),
    ]
)
_TABLES = {b"phdr": _PRESET, b"pbag": _BAG, b"pgen": _GENERATOR, b"inst": _INSTRUMENT}
_TABLES |= {b"ibag": _BAG, b"igen": _GENERATOR, b"shdr": _SAMPLE}

# Generator numbers of the specification, §8.1.2.
_START, _END, _LOOP_START, _LOOP_END = 0, 1, 2, 3
_START_COARSE, _END_COARSE, _LOOP_START_COARSE, _LOOP_END_COARSE = 4, 12, 45, 50
_FILTER, _FILTER_Q, _FILTER_MOVE = 8, 9, 11
_FILTER_DELAY, _FILTER_ATTACK, _FILTER_HOLD, _FILTER_DECAY, _FILTER_SUSTAIN = 26, 27, 28, 29, 30
_DELAY, _ATTACK, _HOLD, _DECAY, _SUSTAIN, _RELEASE, _KEY_HOLD, _KEY_DECAY = 33, 34, 35, 36, 37, 38, 39, 40
_INSTRUMENT_INDEX, _KEYS, _VELOCITIES, _FIXED_KEY, _FIXED_VELOCITY = 41, 43, 44, 46, 47
_ATTENUATION, _COARSE_TUNE, _FINE_TUNE, _SAMPLE_INDEX, _LOOP_MODE, _SCALE_TUNING, _ROOT = 48, 51, 52, 53, 54, 56, 58

_DEFAULTS = {_FILTER: 13500, _SCALE_TUNING: 100, _FIXED_KEY: -1, _FIXED_VELOCITY: -1, _ROOT: -1}
_DEFAULTS |= dict.fromkeys((_DELAY, _ATTACK, _HOLD, _DECAY, _RELEASE), -12000)
_DEFAULTS |= dict.fromkeys((_FILTER_DELAY, _FILTER_ATTACK, _FILTER_HOLD, _FILTER_DECAY), -12000)
# A preset adds to these; the others belong to the instrument alone (§8.5).
_INSTRUMENT_ONLY = {_START, _END, _LOOP_START, _LOOP_END, _START_COARSE, _END_COARSE, _LOOP_START_COARSE}
_INSTRUMENT_ONLY |= {_LOOP_END_COARSE, _FIXED_KEY, _FIXED_VELOCITY, _SAMPLE_INDEX, _LOOP_MODE, _ROOT}
_COMPRESSED = 0x10  # sample type bit of .sf3 fonts: Ogg Vorbis instead of 16-bit PCM
DRUM_BANK = 128
_MAXIMUM_BYTES = 2 << 30
_MAXIMUM_ZONES = 8192


@dataclass(frozen=True)
class Envelope:
    """A volume envelope: seconds for the times, decibels for the levels."""

    delay: float
    attack: float
    hold: float
    decay: float  # seconds for a fall of 100 dB
    sustain: float  # dB below the peak
    release: float  # seconds for a fall of 100 dB


@dataclass(frozen=True)
class Filter:
    """A two-pole low-pass whose cutoff an envelope moves: cents above 8.176 Hz, seconds, and the share that stays."""

    cents: int
    resonance: float  # dB
    move: int  # cents added at the top of the envelope
    delay: float
    attack: float
    hold: float
    decay: float  # seconds from the top down to nothing
    sustain: float  # 0..1 of the move


@dataclass(frozen=True)
class Zone:
    """One sample and how it is played, for the keys and velocities of its ranges (both ends included).

    `start`, `end`, `loop_start` and `loop_end` index `SoundFont.samples`; the ends are exclusive.
    """

    keys: tuple[int, int]
    velocities: tuple[int, int]
    start: int
    end: int
    loop_start: int
    loop_end: int
    loops: bool
    rate: int  # Hz of the recording
    root: int  # MIDI key at which it was recorded
    cents: int  # tuning added at every key
    scale: int  # cents for each key away from the root
    fixed_key: int  # -1: the key that is played
    fixed_velocity: int  # -1: the velocity that is played
    attenuation: float  # dB
    filter: Filter
    envelope: Envelope
    key_hold: int  # timecents for each key below 60
    key_decay: int

    def step(self, pitch: int) -> float:
        """Samples of the recording in one second of the note at MIDI key `pitch`."""
        key = self.fixed_key if self.fixed_key >= 0 else pitch
        return self.rate * 2.0 ** (((key - self.root) * self.scale + self.cents) / 1200.0)


class SoundFont:
    """A parsed font: `samples` int16 [S] and the zones of each preset.

    Raises `MusaeError` when the file is not a whole SoundFont 2 file with 16-bit samples.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            status = self.path.stat()
            if status.st_size > _MAXIMUM_BYTES:
                raise self._error(f"is {status.st_size:,} bytes long, more than is read")
            content = self.path.read_bytes()
        except OSError as error:
            raise self._error(f"cannot be read ({error.strerror})") from None
        if len(content) < 12 or content[:4] != b"RIFF" or content[8:12] != b"sfbk":
            raise self._error("does not begin as a SoundFont 2 file (RIFF … sfbk) does")
        self.identity = (str(self.path), status.st_mtime_ns, status.st_size)
        top = self._chunks(content, 12, min(len(content), 8 + struct.unpack_from("<I", content, 4)[0]), lists=True)
        self.samples = self._samples(content, top.get(b"sdta"))
        tables = self._tables(content, top.get(b"pdta"))
        self._sample_headers, self._instruments = tables[b"shdr"], tables[b"inst"]
        self._preset_bags, self._preset_generators = tables[b"pbag"], tables[b"pgen"]
        self._instrument_bags, self._instrument_generators = tables[b"ibag"], tables[b"igen"]
        self._presets = tables[b"phdr"]
        self.presets = {  # (bank, program) -> row; the first wins, as in other players
            (int(row["bank"]), int(row["program"])): index
            for index, row in reversed(list(enumerate(self._presets[:-1])))
        }
        self._zones: dict[tuple[int, int], tuple[Zone, ...]] = {}

    def zones(self, bank: int, program: int) -> tuple[Zone, ...]:
        """The zones of a preset; `bank` 128 holds the drum kits. An absent preset is a `MusaeError`."""
        key = (bank, program)
        if key not in self._zones:
            if key not in self.presets:
                raise self._error(f"has no sound for bank {bank}, program {program}")
            self._zones[key] = self._resolve(self.presets[key])
        return self._zones[key]

    def matching(self, bank: int, program: int, pitch: int, velocity: int) -> tuple[Zone, ...]:
        """The zones that sound together for a key and velocity.

        Where a pitched program has a gap, the zones of the nearest keys play, at the right pitch. A note that would be
        silent all the same, or the wrong drum, is a `MusaeError`, for the score would be untrue.
        """
        reach = [  # pairs, no dictionary: fonts double a zone to make it louder
            (max(zone.keys[0] - pitch, pitch - zone.keys[1], 0), zone)
            for zone in self.zones(bank, program)
            if zone.velocities[0] <= velocity <= zone.velocities[1]
        ]
        nearest = min((distance for distance, _ in reach), default=0)
        if not reach or (bank == DRUM_BANK and nearest > 0):
            raise self._error(f"has no sound for bank {bank}, program {program} at key {pitch}, velocity {velocity}")
        return tuple(zone for distance, zone in reach if distance == nearest)

    def _error(self, what: str) -> MusaeError:
        return MusaeError(f"the soundfont {self.path} {what}; name another .sf2 file or reinstall pretty_midi")

    def _chunks(self, content: bytes, start: int, stop: int, lists: bool = False) -> dict[bytes, tuple[int, int]]:
        """The chunks in content[start:stop]: {name: (start, stop)}; with `lists`, named by their list type."""
        found: dict[bytes, tuple[int, int]] = {}
        while start + 8 <= stop:
            name, size = content[start : start + 4], struct.unpack_from("<I", content, start + 4)[0]
            begin, end = start + 8, start + 8 + size
            if end > stop:
                raise self._error(f"is cut short: its chunk {name!r} wants {end - stop:,} bytes more than there are")
            if lists and name == b"LIST" and size >= 4:
                found[content[begin : begin + 4]] = (begin + 4, end)
            elif not lists:
                found[name] = (begin, end)
            start = end + size % 2  # chunks are padded to even lengths
        return found

    def _samples(self, content: bytes, span: tuple[int, int] | None) -> np.ndarray:
        chunk = self._chunks(content, *span).get(b"smpl") if span else None
        if chunk is None:
            raise self._error("holds no samples (no chunk sdta/smpl)")
        return np.frombuffer(content, "<i2", (chunk[1] - chunk[0]) // 2, chunk[0])

    def _tables(self, content: bytes, span: tuple[int, int] | None) -> dict[bytes, np.ndarray]:
        chunks = self._chunks(content, *span) if span else {}
        tables = {}
        for name, dtype in _TABLES.items():
            if name not in chunks:
                raise self._error(f"lacks the table {name.decode()}")
            begin, end = chunks[name]
            if (end - begin) % dtype.itemsize or end == begin:
                raise self._error(
                    f"has a table {name.decode()} of {end - begin} bytes, no multiple of {dtype.itemsize}"
                )
            tables[name] = np.frombuffer(content, dtype, (end - begin) // dtype.itemsize, begin)
        return tables

    def _bags(self, owners: np.ndarray, index: int, bags: np.ndarray, generators: np.ndarray) -> list[dict[int, int]]:
        """The generator lists {kind: raw amount} of one preset or instrument, in file order."""
        if not 0 <= index < len(owners) - 1:
            raise self._error(f"names entry {index} of a table that has {len(owners) - 1}")
        first, last = int(owners["bag"][index]), int(owners["bag"][index + 1])
        if not first <= last < len(bags):
            raise self._error(f"points at zones {first}..{last} of {len(bags) - 1}")
        lists = []
        for bag in range(first, last):
            begin, end = int(bags["generator"][bag]), int(bags["generator"][bag + 1])
            if not begin <= end <= len(generators):
                raise self._error(f"points at generators {begin}..{end} of {len(generators)}")
            rows = generators[begin:end]
            lists.append(dict(zip(rows["kind"].tolist(), rows["amount"].tolist())))
        return lists

    def _resolve(self, preset: int) -> tuple[Zone, ...]:
        zones = []
        outer_lists = self._bags(self._presets, preset, self._preset_bags, self._preset_generators)
        for outer in _local_zones(outer_lists, _INSTRUMENT_INDEX):
            instrument = outer[_INSTRUMENT_INDEX] & 0xFFFF
            inner_lists = self._bags(self._instruments, instrument, self._instrument_bags, self._instrument_generators)
            for inner in _local_zones(inner_lists, _SAMPLE_INDEX):
                zone = self._zone(outer, inner)
                if zone is not None:
                    zones.append(zone)
                if len(zones) > _MAXIMUM_ZONES:
                    raise self._error(f"gives one preset more than {_MAXIMUM_ZONES} zones")
        return tuple(zones)

    def _zone(self, outer: dict[int, int], inner: dict[int, int]) -> Zone | None:
        keys, velocities = (
            _intersection(_range(outer.get(kind)), _range(inner.get(kind))) for kind in (_KEYS, _VELOCITIES)
        )
        if keys[0] > keys[1] or velocities[0] > velocities[1]:
            return None

        def value(kind: int) -> int:
            own = inner.get(kind, _DEFAULTS.get(kind, 0))
            return own if kind in _INSTRUMENT_ONLY else own + outer.get(kind, 0)

        index = inner[_SAMPLE_INDEX] & 0xFFFF
        if index >= len(self._sample_headers) - 1:
            raise self._error(f"names sample {index} of {len(self._sample_headers) - 1}")
        header = self._sample_headers[index]
        if int(header["type"]) & _COMPRESSED:
            raise self._error("holds compressed samples (.sf3), which are not read")
        if int(header["type"]) & 0x8000:
            return None  # a sample in the ROM of a sound card; no file has it
        rate, total = int(header["rate"]), len(self.samples)
        if not 400 <= rate <= 400_000:
            raise self._error(f"gives sample {index} a rate of {rate} Hz")
        start = int(header["start"]) + value(_START) + 32768 * value(_START_COARSE)
        end = int(header["end"]) + value(_END) + 32768 * value(_END_COARSE)
        if not 0 <= start < end <= total:
            raise self._error(f"places sample {index} at {start}..{end} of {total}")
        loop_start = int(header["loop_start"]) + value(_LOOP_START) + 32768 * value(_LOOP_START_COARSE)
        loop_end = int(header["loop_end"]) + value(_LOOP_END) + 32768 * value(_LOOP_END_COARSE)
        # Some fonts end a loop a few samples past the end: what lies there still belongs to the sample's padding.
        sound_loop = start <= loop_start < loop_end <= min(end + 8, total) and loop_end - loop_start >= 4
        loops = value(_LOOP_MODE) & 3 in (1, 3) and sound_loop
        root = value(_ROOT) if 0 <= value(_ROOT) <= 127 else int(header["root"])
        delay, attack, hold, decay, release = (
            _seconds(value(kind)) for kind in (_DELAY, _ATTACK, _HOLD, _DECAY, _RELEASE)
        )
        envelope = Envelope(delay, attack, hold, decay, float(np.clip(value(_SUSTAIN) / 10, 0, 144)), release)
        times = (_seconds(value(kind)) for kind in (_FILTER_DELAY, _FILTER_ATTACK, _FILTER_HOLD, _FILTER_DECAY))
        low_pass = Filter(
            int(np.clip(value(_FILTER), 1500, 13500)), float(np.clip(value(_FILTER_Q), 0, 960)) / 10,
            int(np.clip(value(_FILTER_MOVE), -12000, 12000)), *times,
            sustain=1 - float(np.clip(value(_FILTER_SUSTAIN), 0, 1000)) / 1000,
        )  # fmt: skip
        tuning = 100 * value(_COARSE_TUNE) + value(_FINE_TUNE) + int(header["correction"])
        return Zone(
            keys=keys, velocities=velocities, start=start, end=end, loop_start=loop_start, loop_end=loop_end,
            loops=loops, rate=rate, root=root if root <= 127 else 60,
            cents=int(np.clip(tuning, -12000, 12000)),
            scale=int(np.clip(value(_SCALE_TUNING), 0, 1200)),
            fixed_key=value(_FIXED_KEY), fixed_velocity=value(_FIXED_VELOCITY),
            # 0.04, not 0.1 dB a unit: the sound cards that fonts are made for scale it so, and players follow them.
            attenuation=float(np.clip(value(_ATTENUATION), 0, 1440)) * 0.04,
            filter=low_pass, envelope=envelope, key_hold=value(_KEY_HOLD), key_decay=value(_KEY_DECAY),
        )  # fmt: skip


def _local_zones(lists: list[dict[int, int]], terminal: int) -> list[dict[int, int]]:
    """Adds the global zone (the first, when it names no `terminal`) below the others and drops unfinished ones."""
    shared = lists[0] if lists and terminal not in lists[0] else {}
    return [shared | generators for generators in lists if terminal in generators]


def _range(amount: int | None) -> tuple[int, int]:
    return (0, 127) if amount is None else (amount & 0xFF, (amount >> 8) & 0xFF)


def _intersection(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return max(one[0], other[0]), min(one[1], other[1])


def _seconds(timecents: int) -> float:
    return 0.0 if timecents <= -12000 else 2.0 ** (min(timecents, 8000) / 1200)
