"""Generate code tasks: instruction, input files, the program that does it, and what must come out of that.

Three families in Chinese and English. The prompt equals the backend's: `user_text` writes what
`prompting.prompt.render` writes in its compact profile, and a test compares the two. A small share of the
tasks has a fault deep in its file, which no preview shows: the first program fails, and its traceback shows
what the second one must handle.
"""

import json
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from demo.corpus.code_files import Row, Sheet
from demo.corpus.code_kinds import (
    FAMILIES,
    KINDS,
    Family,
    Fault,
    Kind,
    Scene,
    faults_of,
    write_program,
)
from demo.corpus.words import Draw, Language, Split, join, word_list

__all__ = ["FAMILIES", "KINDS", "SYSTEM", "CodeTask", "generate", "target", "user_text", "write_demo"]

SYSTEM = "Write a complete Python program for the task as JSON: code."
FAULT_SHARE = 0.1
_LEVELS = ("INFO", "WARN", "ERROR", "DEBUG")
_DATE_FORMS = ("{}-{:02}-{:02}", "{}/{:02}/{:02}", "{}年{:02}月{:02}日")
_SEEN_ROWS = 230  # of the head of a table: faults lie deeper


@dataclass(frozen=True)
class CodeTask:
    """One task.

    `files` are its inputs by name, `schema` their preview in a prompt, `outputs` the files to write. `first`
    is the program that the prompt alone suggests, `program` the correct one: they differ if the task has a
    `fault`, which only a traceback shows.
    """

    kind: Kind
    instruction: str
    files: dict[str, bytes]
    schema: str
    outputs: tuple[str, ...]
    first: str
    program: str
    scene: Scene
    language: Language

    @property
    def family(self) -> Family:
        """The task's family."""
        return self.kind.family

    @property
    def fault(self) -> Fault | None:
        """The fault in the file that no preview shows."""
        return self.scene.fault

    def expected(self) -> Any:
        """Compute what must come out, without the program (`code_checks`)."""
        return self.kind.expect(self.scene)


def user_text(task: CodeTask) -> str:
    """Write the user's message, as the backend does for a tuned model."""
    parts = {
        "instruction": task.instruction,
        "input_schema": task.schema,
        "output_files": "\n".join(task.outputs),
    }
    return "\n\n".join(f"## {key}\n{text}" for key, text in parts.items())


def target(code: str) -> str:
    """Write an answer as it is trained and decoded: canonical JSON."""
    return json.dumps({"code": code}, ensure_ascii=False, separators=(",", ":"))


def generate(
    split: Split, count: int, seed: int, kinds: Iterable[Kind] = KINDS, *, fault_share: float = FAULT_SHARE
) -> Iterator[CodeTask]:
    """Yield `count` code tasks, the same ones for the same arguments.

    Args:
        split: Which word lists to draw from; `held_out` uses none of the training ones.
        count: How many to yield.
        seed: Start of the random sequence.
        kinds: What may be drawn.
        fault_share: Share of faults among those whose files can have one.
    Returns:
        Tasks, in a fixed order.
    """
    draw = Draw(split, random.Random(f"code/{split}/{seed}"))
    among = tuple(kinds)
    weights = [kind.weight for kind in among]
    for _ in range(count):
        yield _Drawing(draw, draw.rng.choices(among, weights)[0], fault_share).task()


def write_demo(folder: Path, count: int, seed: int) -> list[CodeTask]:
    """Write held-out tasks as `scripts/import_tasks` reads them: `tasks.jsonl` and `inputs/shared/`.

    Args:
        folder: Existing; gets one folder of inputs for each task.
        count: How many, the families in turn.
        seed: Start of the random sequence.
    Returns:
        The tasks, in the order of their rows.
    """
    drawn = {
        family: generate("held_out", -(-count // len(FAMILIES)), seed, _of(family)) for family in FAMILIES
    }
    tasks = [next(drawn[FAMILIES[number % len(FAMILIES)]]) for number in range(count)]
    rows = []
    for number, task in enumerate(tasks, start=1):
        below = folder / "inputs" / "shared" / f"{number:03}"
        below.mkdir(parents=True, exist_ok=True)
        for name, content in task.files.items():
            (below / name).write_bytes(content)
        paths = [f"{below.name}/{name}" for name in task.files]
        row = {"instruction": task.instruction, "inputs": paths, "output_files": list(task.outputs)}
        rows.append(json.dumps(row, ensure_ascii=False) + "\n")
    (folder / "tasks.jsonl").write_text("".join(rows), encoding="utf-8")
    return tasks


def only_gb18030(draw: Draw) -> str:
    """Draw two characters whose bytes in GB 18030 are no UTF-8, as one pair in some thousand is."""
    while True:
        text = draw.characters(2, 2)
        try:
            text.encode("gb18030").decode()
        except UnicodeDecodeError:
            return text


def _of(family: Family) -> tuple[Kind, ...]:
    return tuple(kind for kind in KINDS if kind.family == family)


class _Drawing:
    """Draws one task of a kind."""

    def __init__(self, draw: Draw, kind: Kind, fault_share: float) -> None:
        self.draw = draw
        self.kind = kind
        self.language = draw.language()
        self.names: Language = "en" if draw.chance(0.12) else self.language
        self.slots: dict[str, str] = {}
        self.fault: Fault | None = None
        faults = faults_of(kind)
        if faults and draw.chance(fault_share):
            self.fault = draw.rng.choice(faults)
            if self.fault == "late_gb18030":
                self.names = "en"  # its head is plain ASCII

    def task(self) -> CodeTask:
        """Draw it."""
        out = self.draw.of(self.kind.outs)
        self.slots["out"] = self._file_name("code_outs")
        if out == "report.md":
            out, written = "md", ""
        else:
            written = out
        rows, sheets = self._material()
        if self.kind.titled:
            self.slots["title"] = self._title()
        files = {sheet.name: sheet.content() for sheet in sheets}
        schema = "\n\n".join(sheet.preview(files[sheet.name]) for sheet in sheets)
        scene = Scene(sheets, rows, dict(self.slots), self.fault)
        outputs: tuple[str, ...] = (f"{self.slots['out']}.{out}",)
        if not out:
            outputs = tuple(f"{sheet.stem}.{self.kind.name.removeprefix('to_')}" for sheet in sheets)
        first = write_program(self.kind, scene, written)
        return CodeTask(
            kind=self.kind,
            instruction=self._instruction(sheets[0].name if len(sheets) == 1 else "", outputs if out else ()),
            files=files,
            schema=schema,
            outputs=outputs,
            first=first,
            program=write_program(self.kind, scene, written, mended=True),
            scene=scene,
            language=self.language,
        )

    # ------------------------------------------------------------ names

    def _name(self, slot: str) -> str:
        """Draw a column's name that the table does not have yet."""
        folder = {"second": "groups", "other": "values"}.get(slot, f"{slot}s")
        while True:
            if self.draw.wildly(0.4):
                name = self._invented()
            else:
                name = self.draw.pick(f"code_{folder}_{self.names}").partition("=")[0]
            if name not in self.slots.values():
                return name

    def _invented(self) -> str:
        draw = self.draw
        if self.names == "zh":
            return draw.characters(2, 4)
        return draw.letters(3, 8) + (f"_{draw.letters(2, 5)}" if draw.chance(0.3) else "")

    def _file_name(self, words: str) -> str:
        stem = self._invented() if self.draw.wildly(0.4) else self.draw.pick(f"{words}_{self.names}")
        if self.draw.chance(0.2):
            stem += self.draw.of(("_", "")) + str(self.draw.between(1, 2030))
        return stem

    def _items(self, column: str) -> list[str]:
        """Draw the values of a column of words: those of its list, or others."""
        listed = dict(line.split("=", 1) for line in word_list(self.draw.split, f"code_groups_{self.names}"))
        if column in listed:
            return listed[column].split(",")
        if self.draw.wildly(0.5):
            return list(dict.fromkeys(self._invented() for _ in range(self.draw.between(3, 6))))
        return self.draw.rng.choice(list(listed.values())).split(",")

    def _title(self) -> str:
        slots, draw = self.slots, self.draw
        if draw.chance(0.35):
            return slots["out"]  # a title that the instruction does not state is the name of the file
        about = [slots[slot] for slot in ("group", "date", "value", "other") if slot in self.kind.needs]
        if self.names == "en":
            return draw.of(("{} overview", "All {}", "{}", "{} in 2025")).format(" and ".join(about))
        if draw.wildly(0.3):
            return draw.characters(3, 8)
        return draw.of(("各{}", "{}统计", "{}一览", "{}情况", "{}图")).format("与".join(about))

    # ------------------------------------------------------------ files

    def _material(self) -> tuple[tuple[Row, ...], tuple[Sheet, ...]]:
        if self.kind.reads == "log":
            return self._log()
        if self.kind.reads == "none":
            return self._several()
        columns = list(self.kind.needs)
        spare = [one for one in ("key", "date", "group", "value", "other", "second") if one not in columns]
        columns += self.draw.rng.sample(spare, self.draw.rng.choice((1, 1, 2, 2, 3)))
        order = ("key", "date", "group", "second", "value", "other")
        if self.draw.chance(0.6):
            columns.sort(key=order.index)
        else:
            self.draw.rng.shuffle(columns)
        for slot in columns:
            self.slots[slot] = self._name(slot)
        rows = self._rows(columns, self._how_many())
        sheet = self._sheet([self.slots[slot] for slot in columns], rows)
        self._choose(columns, rows)
        if self.fault:
            return self._spoilt(sheet, columns)
        if self.kind.reads == "two":
            return sheet.rows, (sheet, self._second(sheet, columns))
        return sheet.rows, (sheet,)

    def _how_many(self) -> int:
        draw = self.draw
        if self.fault == "late_gb18030":
            return draw.between(6500, 7500)
        if self.fault or draw.chance(0.05):
            return draw.between(_SEEN_ROWS + 20, draw.rng.choice((600, 1500, 6000)))
        return draw.between(6, draw.rng.choice((20, 60, 190)))

    def _rows(self, columns: list[str], count: int) -> list[Row]:
        return [list(row) for row in zip(*(self._column(slot, count) for slot in columns), strict=True)]

    def _column(self, slot: str, count: int) -> list[Any]:
        rng = self.draw.rng
        if slot in ("group", "second"):
            items = self._items(self.slots[slot])
            return rng.choices(items, k=count)
        if slot == "date":
            form = rng.choice(_DATE_FORMS[:2] if self.names == "en" or self.fault else _DATE_FORMS)
            year = rng.choice((2023, 2024, 2025))
            days = sorted((rng.randint(1, 12), rng.randint(1, 28)) for _ in range(count))
            return [form.format(year, month, day) for month, day in days]
        if slot == "key":
            start, prefix = rng.randint(1000, 90000), rng.choice(("", "", "A", "NO", "K-"))
            among = range(start, start + max(3, count * 2 // 3))
            if self.kind.name != "dedupe":
                among = range(start, start + count)
                return [f"{prefix}{number}" if prefix else number for number in among]
            return [f"{prefix}{one}" if prefix else one for one in rng.choices(among, k=count)]
        most = rng.choice((100, 1000, 10000))
        if rng.random() < 0.5:
            return [rng.randint(1, most) for _ in range(count)]
        digits = rng.choice((1, 2))
        return [round(rng.uniform(1, most), digits) for _ in range(count)]

    def _sheet(self, columns: list[str], rows: list[Row]) -> Sheet:
        draw = self.draw
        stem = self._file_name("code_stems")
        self.slots["stem"] = stem
        kind, encoding, separator = "csv", "utf-8", ","
        if not self.fault and self.kind.reads == "table":
            kind = draw.rng.choices(("csv", "xlsx", "json", "jsonl"), (0.7, 0.16, 0.07, 0.07))[0]
        if kind == "csv" and not self.fault:
            separator = draw.rng.choices((",", ";", "\t"), (0.88, 0.08, 0.04))[0]
            written = "".join(map(str, columns)) + "".join(str(cell) for row in rows for cell in row)
            if separator == "," and not written.isascii() and draw.chance(0.3):
                encoding = "gb18030"
        if self.fault == "late_gb18030":
            encoding = "gb18030"
        return Sheet(stem, kind, tuple(columns), tuple(rows), encoding, separator)

    def _second(self, sheet: Sheet, columns: list[str]) -> Sheet:
        """Draw the table that is joined: one row for each group, in another order."""
        stem = self._file_name("code_stems")
        while stem == sheet.stem:
            stem = self._file_name("code_stems")
        self.slots["stem2"] = stem
        extra = self._name("extra")
        groups = list(dict.fromkeys(sheet.column(self.slots["group"])))
        self.draw.rng.shuffle(groups)
        rows = tuple([group, self._invented()] for group in groups)
        return Sheet(stem, "csv", (self.slots["group"], extra), rows)

    def _choose(self, columns: list[str], rows: list[Row]) -> None:
        """Draw what a condition speaks of."""
        draw = self.draw
        if self.kind.name == "top":
            self.slots["n"] = str(draw.rng.choice((3, 5, 10, draw.between(2, 20))))
        elif self.kind.name in ("above", "below"):
            values = sorted(row[columns.index("value")] for row in rows)
            middle = values[len(values) // 2]
            self.slots["n"] = str(round(middle) if draw.chance(0.8) else middle)
        elif self.kind.name == "equal":
            self.slots["item"] = str(draw.rng.choice(rows)[columns.index("group")])

    def _spoilt(self, sheet: Sheet, columns: list[str]) -> tuple[tuple[Row, ...], tuple[Sheet, ...]]:
        """Put the fault deep into the file; return the true rows and the file."""
        draw, rng = self.draw, self.draw.rng
        shown = [list(row) for row in sheet.rows]
        true = [list(row) for row in sheet.rows]
        if self.fault == "late_gb18030":
            return self._spoilt_late(sheet, columns.index("group"))
        places = rng.sample(range(_SEEN_ROWS, len(shown)), rng.choice((1, 1, 2, 3)))
        if self.fault == "long_row":
            for at in places:
                shown[at] = [*shown[at], rng.randint(1, 9)]
            true = [row for at, row in enumerate(true) if at not in places]
            return tuple(true), (replace(sheet, rows=tuple(shown)),)
        place = columns.index("date" if self.fault.startswith("date") else "value") if self.fault else 0
        if self.fault == "unit":
            self.slots["bad"] = draw.pick("code_units")
        elif self.fault in ("gap", "date_gap"):
            self.slots["bad"] = draw.pick("code_gaps")
        for at in places:
            cell = shown[at][place]
            if self.fault == "unit":
                shown[at][place] = f"{cell}{self.slots['bad']}"
            elif self.fault == "comma":
                true[at][place] = rng.randint(1000, 99999)
                shown[at][place] = f"{true[at][place]:,}"
            elif self.fault == "date_form":
                year, month, day = re.findall(r"\d+", cell)
                shown[at][place] = f"{year}.{month}.{day}" if draw.chance(0.5) else f"{year}{month}{day}"
            else:
                shown[at][place], true[at][place] = self.slots["bad"], None
        return tuple(true), (replace(sheet, rows=tuple(shown)),)

    def _spoilt_late(self, sheet: Sheet, place: int) -> tuple[tuple[Row, ...], tuple[Sheet, ...]]:
        """Write Chinese in another encoding behind more plain ASCII than a preview reads."""
        rows = [[*row, "x" * 40] for row in sheet.rows]
        late = only_gb18030(self.draw)
        for row in rows[-40::8]:
            row[place] = late
        spoilt = replace(sheet, columns=(*sheet.columns, "memo"), rows=tuple(rows))
        return spoilt.rows, (spoilt,)

    def _log(self) -> tuple[tuple[Row, ...], tuple[Sheet, ...]]:
        rng = self.draw.rng
        self.slots["stem"] = self._file_name("code_stems")
        hour, minute, rows = rng.randint(0, 9), 0, []
        day = f"2025-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
        for _ in range(rng.randint(5, 16)):
            minute += rng.randint(1, 50)
            clock = f"{hour + minute // 60:02}:{minute % 60:02}:{rng.randint(0, 59):02}"
            rows.append([f"{day} {clock} {rng.choice(_LEVELS)} {self.draw.pick('code_logs')}"])
        self.slots["word"] = rng.choice(rows)[0].split()[2]
        return tuple(rows), (Sheet(self.slots["stem"], "log", ("line",), tuple(rows)),)

    def _several(self) -> tuple[tuple[Row, ...], tuple[Sheet, ...]]:
        """Draw some small CSV files with the same columns."""
        columns = self.draw.rng.choice((["group", "value"], ["key", "value"], ["date", "value"]))
        for slot in columns:
            self.slots[slot] = self._name(slot)
        sheets: dict[str, Sheet] = {}
        while len(sheets) < self.draw.rng.choice((2, 2, 3)):
            rows = tuple(self._rows(columns, self.draw.between(3, 12)))
            stem = self._file_name("code_stems")
            sheets[stem] = Sheet(stem, "csv", tuple(self.slots[slot] for slot in columns), rows)
        self.slots["prefix"] = self.draw.pick("code_prefixes")
        drawn = tuple(sheets.values())
        return drawn[0].rows, drawn

    # ------------------------------------------------------------ instruction

    def _instruction(self, file: str, outputs: tuple[str, ...]) -> str:
        draw, language = self.draw, self.language
        values = {**self.slots, "file": file, "out": outputs[0] if outputs else ""}
        clauses = word_list(draw.split, f"code_clauses_{language}")
        clause = draw.of([line for line in clauses if line.startswith(f"{self.kind.name}: ")])
        parts = [clause.partition(": ")[2]]
        if self.kind.titled and self.slots["title"] != self.slots["out"]:
            parts.append(draw.pick(f"code_titles_{language}"))
        plain = "." if language == "en" else draw.of(("。", ""))
        parts.append(draw.pick(f"code_endings_{language}") if outputs and draw.chance(0.9) else plain)
        text = join(draw.pieces("".join(map(_chosen(draw), parts)), 1.0), values)
        if draw.chance(0.5):
            opener = draw.pick(f"code_openers_{language}")
            if file or "{file}" not in opener:
                text = opener.replace("{file}", file) + text
        text = text.strip()
        return text[0].upper() + text[1:] if language == "en" and not text.startswith(file or "\0") else text


def _chosen(draw: Draw) -> Any:
    """Make what chooses among the alternatives of a clause: `(a|b)`, and `<a|b>`, which is never mutated."""

    def choose(text: str) -> str:
        text = re.sub(r"\(([^()]*\|[^()]*)\)", lambda match: draw.of(match[1].split("|")), text)
        return re.sub(r"<([^<>]*)>", lambda match: f"<{draw.of(match[1].split('|'))}>", text)

    return choose
