"""The kinds of code tasks: what each is asked with, its program, and what must come out, computed without it.

A program is put together of lines that kinds share; `@slot@` stands for what is copied from the prompt.
Nothing else varies: the same task has the same program, and what a kind decides are whole lines.

    head    imports
    read    one line for each way that a file is written, as its preview tells it
    ready   numbers and dates of text, loudly: what is no number ends the program and stands in its traceback
    body    what the kind does
    end     one line for each kind of file that is written, and what is printed
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from demo.corpus.code_files import Row, Sheet

Family = Literal["processing", "automation", "charts"]
Fault = Literal["unit", "comma", "gap", "date_gap", "date_form", "long_row", "late_gb18030"]

FAMILIES: tuple[Family, ...] = ("processing", "automation", "charts")

_READ = {
    "csv": 'df = pd.read_csv("input/@stem@.csv")\n',
    "csv gb18030": 'df = pd.read_csv("input/@stem@.csv", encoding="gb18030")\n',
    "csv ;": 'df = pd.read_csv("input/@stem@.csv", sep=";")\n',
    "csv \t": 'df = pd.read_csv("input/@stem@.csv", sep="\\t")\n',
    "xlsx": 'df = pd.read_excel("input/@stem@.xlsx")\n',
    "json": 'df = pd.read_json("input/@stem@.json", dtype=False)\n',
    "jsonl": 'df = pd.read_json("input/@stem@.jsonl", lines=True, dtype=False)\n',
    "log": 'with open("input/@stem@.log", encoding="utf-8") as file:\n    lines = file.read().splitlines()\n',
    "second": 'other = pd.read_csv("input/@stem2@.csv")\n',
    "long_row": 'df = pd.read_csv("input/@stem@.csv", on_bad_lines="skip")\n',
}
_NUMBERS = 'df["@value@"] = pd.to_numeric(df["@value@"])\n'
_OTHERS = 'df["@other@"] = pd.to_numeric(df["@other@"])\n'
_DATES = 'df["@date@"] = pd.to_datetime(df["@date@"])\n'
_DATES_ZH = 'df["@date@"] = pd.to_datetime(df["@date@"], format="%Y年%m月%d日")\n'
# Line of the first program, and the line that replaces it once the traceback has shown the fault.
_MENDED: dict[Fault, tuple[str, str]] = {
    "unit": (_NUMBERS, 'df["@value@"] = pd.to_numeric(df["@value@"].astype(str).str.replace("@bad@", ""))\n'),
    "comma": (_NUMBERS, 'df["@value@"] = pd.to_numeric(df["@value@"].astype(str).str.replace(",", ""))\n'),
    "gap": (_NUMBERS, 'df["@value@"] = pd.to_numeric(df["@value@"].replace("@bad@", None))\n'),
    "date_gap": (_DATES, 'df["@date@"] = pd.to_datetime(df["@date@"].replace("@bad@", None))\n'),
    "date_form": (_DATES, 'df["@date@"] = pd.to_datetime(df["@date@"], format="mixed")\n'),
    "long_row": (_READ["csv"], _READ["long_row"]),
    "late_gb18030": (_READ["csv"], _READ["csv gb18030"]),
}
_WRITE = {
    "csv": 'result.to_csv("@out@.csv", index=False)\n',
    "xlsx": 'result.to_excel("@out@.xlsx", index=False)\n',
    "json": 'result.to_json("@out@.json", orient="records", force_ascii=False)\n',
    "md": 'result.to_markdown("@out@.md", index=False, floatfmt=".2f")\n',
    "txt": 'with open("@out@.txt", "w", encoding="utf-8") as file:\n    file.write("\\n".join(found))\n',
    "png": 'plt.tight_layout()\nplt.savefig("@out@.png")\n',
}
_TABLES = ("csv", "xlsx", "json", "md")
_PANDAS = "import pandas as pd\n\n"
_PLOT = "import matplotlib.pyplot as plt\nimport pandas as pd\n\n"
_ZIP = "import zipfile\n\nimport pandas as pd\n\n"
_PATHS = "from pathlib import Path\n\nimport pandas as pd\n\n"
_ZIP_PATHS = "import zipfile\nfrom pathlib import Path\n\n"
_SHOW = "print(result.to_string(index=False))\n"
_SHOW_SERIES = "print(result.to_string())\n"
_SHOW_COUNT = "print(len(result))\n"
_BY_GROUP = 'result = df.groupby("@group@")["@value@"].sum().round(2)'
_EACH = 'for path in sorted(Path("input").glob("*.csv")):\n'
_ARCHIVE = 'with zipfile.ZipFile("@out@.zip", "w") as archive:\n'
_EACH_IN_ZIP = '    for path in sorted(Path("input").iterdir()):\n'
_SHOW_PATH = "        print(path.name)\n"
_MONTHS = 'result = df.groupby(df["@date@"].dt.strftime("%Y-%m"))["@value@"].sum().round(2)'


@dataclass(frozen=True)
class Scene:
    """What a task is about: names, the files as they are written, and the true values of their rows.

    `rows` are those of the first file: numbers as numbers, None for a missing value.
    """

    sheets: tuple[Sheet, ...]
    rows: tuple[Row, ...]
    slots: Mapping[str, str]
    fault: Fault | None = None

    def values(self, slot: str) -> list[Any]:
        """Return the true values of the column that a slot names."""
        place = self.sheets[0].columns.index(self.slots[slot])
        return [row[place] for row in self.rows]

    def pairs(self, first: str, second: str) -> list[tuple[Any, Any]]:
        """Return the pairs of values of two columns, without rows that lack one."""
        rows = zip(self.values(first), self.values(second), strict=True)
        return [pair for pair in rows if None not in pair]


@dataclass(frozen=True)
class Kind:
    """One kind of task.

    `outs` are the endings of its output, "" where their names follow from the inputs'. `expect` gives the
    rows of a table, a text, the members of an archive by name, or what a chart's program prints.
    """

    name: str
    family: Family
    outs: tuple[str, ...]
    head: str
    body: str
    shown: str
    expect: Callable[[Scene], Any]
    needs: tuple[str, ...] = ("group", "value")
    reads: Literal["table", "two", "log", "none"] = "table"
    ordered: bool = False
    titled: bool = False
    weight: float = 1.0
    ready: tuple[str, ...] = field(default=(_NUMBERS,))


# ---------------------------------------------------------------- what must come out


def _grouped(pairs: Iterable[tuple[Any, Any]], merge: Callable[[list[Any]], Any]) -> list[Row]:
    groups: dict[Any, list[Any]] = defaultdict(list)
    for name, value in pairs:
        groups[name].append(value)
    return [[name, round(merge(values), 2)] for name, values in sorted(groups.items())]


def _sums(scene: Scene) -> list[Row]:
    return _grouped(scene.pairs("group", "value"), sum)


def _counts(scene: Scene) -> list[Row]:
    return [[name, count] for name, count in Counter(scene.values("group")).items()]


def month_of(date: str) -> str:
    """Return the month, as "2025-03", of a date in one of the forms of the corpus."""
    return "-".join(re.findall(r"\d+", date)[:2])


def _months(scene: Scene) -> list[Row]:
    pairs = scene.pairs("date", "value")
    return _grouped(((month_of(date), value) for date, value in pairs), sum)


def _where(test: Callable[[Scene, Row], bool]) -> Callable[[Scene], list[Row]]:
    return lambda scene: [row for row in scene.rows if test(scene, row)]


def _cell(scene: Scene, row: Row, slot: str) -> Any:
    return row[scene.sheets[0].columns.index(scene.slots[slot])]


def _sorted(scene: Scene, *, down: bool) -> list[Row]:
    return sorted(scene.rows, key=lambda row: _cell(scene, row, "value"), reverse=down)


def _deduped(scene: Scene) -> list[Row]:
    first: dict[Any, Row] = {}
    for row in scene.rows:
        first.setdefault(_cell(scene, row, "key"), row)
    return list(first.values())


def _merged(scene: Scene) -> list[Row]:
    added = {row[0]: row[1:] for row in scene.sheets[1].rows}
    return [[*row, *added[_cell(scene, row, "group")]] for row in scene.rows]


def _pivoted(scene: Scene) -> list[Row]:
    seconds = sorted(set(scene.values("second")))
    sums: dict[Any, dict[Any, float]] = defaultdict(dict)
    triples = zip(scene.values("group"), scene.values("second"), scene.values("value"), strict=True)
    for group, second, value in triples:
        sums[group][second] = sums[group].get(second, 0) + value
    return [[group, *(round(row.get(one, 0), 2) for one in seconds)] for group, row in sorted(sums.items())]


def _lines(scene: Scene) -> list[str]:
    return [row[0] for row in scene.rows]


def _split(scene: Scene) -> dict[str, list[Row]]:
    parts: dict[str, list[Row]] = defaultdict(list)
    for row in scene.rows:
        parts[f"{_cell(scene, row, 'group')}.csv"].append(row)
    return dict(parts)


def _each(ending: str) -> Callable[[Scene], dict[str, Sequence[Row]]]:
    return lambda scene: {f"{sheet.stem}{ending}": sheet.rows for sheet in scene.sheets}


def _members(scene: Scene) -> dict[str, bytes]:
    return {sheet.name: sheet.content() for sheet in scene.sheets}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# ---------------------------------------------------------------- kinds


def _table(name: str, body: str, expect: Callable[[Scene], list[Row]], **more: Any) -> Kind:
    made: dict[str, Any] = {"shown": _SHOW, **more}
    return Kind(name, "processing", _TABLES, _PANDAS, body, expect=expect, **made)


def _rows(name: str, body: str, expect: Callable[[Scene], list[Row]], **more: Any) -> Kind:
    made: dict[str, Any] = {"shown": _SHOW_COUNT, "needs": ("value",), **more}
    return Kind(name, "processing", ("csv", "xlsx", "json"), _PANDAS, body, expect=expect, **made)


def _chart(name: str, body: str, expect: Callable[[Scene], list[Any]], **more: Any) -> Kind:
    made: dict[str, Any] = {"shown": _SHOW_SERIES, "titled": True, **more}
    return Kind(name, "charts", ("png",), _PLOT, body, expect=expect, **made)


def _shown_sums(scene: Scene) -> list[Any]:
    return [cell for row in _sums(scene) for cell in row]


def _shown_means(*slots: str) -> Callable[[Scene], list[Any]]:
    def means(scene: Scene) -> list[Any]:
        columns = ([one for one in scene.values(slot) if one is not None] for slot in slots)
        return [round(_mean(column), 2) for column in columns]

    return means


def _automation(name: str, outs: tuple[str, ...], head: str, body: str, shown: str, **more: Any) -> Kind:
    return Kind(name, "automation", outs, head, body, shown, **more)


_LOG = {"reads": "log", "needs": (), "ready": (), "weight": 0.4}
_FILES = {"reads": "none", "needs": (), "ready": (), "weight": 0.7}

KINDS: tuple[Kind, ...] = (
    _table("sum", f"{_BY_GROUP}.reset_index()\n", _sums),
    _table(
        "mean",
        'result = df.groupby("@group@")["@value@"].mean().round(2).reset_index()\n',
        lambda scene: _grouped(scene.pairs("group", "value"), _mean),
    ),
    _table(
        "max",
        'result = df.groupby("@group@")["@value@"].max().reset_index()\n',
        lambda scene: _grouped(scene.pairs("group", "value"), max),
    ),
    _table(
        "count",
        'result = df["@group@"].value_counts().reset_index()\n',
        _counts,
        needs=("group",),
        ready=(),
    ),
    _table(
        "pivot",
        'result = df.pivot_table(index="@group@", columns="@second@", values="@value@", aggfunc="sum")\n'
        "result = result.fillna(0).round(2).reset_index()\n",
        _pivoted,
        needs=("group", "second", "value"),
    ),
    _table(
        "monthly", f"{_MONTHS}.reset_index()\n", _months, needs=("date", "value"), ready=(_NUMBERS, _DATES)
    ),
    _rows(
        "top",
        'result = df.nlargest(@n@, "@value@")\n',
        lambda scene: _sorted(scene, down=True)[: int(scene.slots["n"])],
        ordered=True,
    ),
    _rows(
        "above",
        'result = df[df["@value@"] > @n@]\n',
        _where(lambda scene, row: _cell(scene, row, "value") > float(scene.slots["n"])),
    ),
    _rows(
        "below",
        'result = df[df["@value@"] < @n@]\n',
        _where(lambda scene, row: _cell(scene, row, "value") < float(scene.slots["n"])),
    ),
    _rows(
        "equal",
        'result = df[df["@group@"] == "@item@"]\n',
        _where(lambda scene, row: _cell(scene, row, "group") == scene.slots["item"]),
        needs=("group",),
        ready=(),
    ),
    _rows("dedupe", 'result = df.drop_duplicates("@key@")\n', _deduped, needs=("key",), ready=()),
    _rows(
        "sort",
        'result = df.sort_values("@value@", ascending=False, kind="stable")\n',
        lambda scene: _sorted(scene, down=True),
        ordered=True,
    ),
    _rows(
        "rise",
        'result = df.sort_values("@value@", kind="stable")\n',
        lambda scene: _sorted(scene, down=False),
        ordered=True,
    ),
    _rows(
        "merge", 'result = df.merge(other, on="@group@")\n', _merged, needs=("group",), reads="two", ready=()
    ),
    _automation(
        "levels",
        ("csv", "json", "md"),
        _PANDAS,
        "result = pd.Series([line.split()[2] for line in lines]).value_counts().reset_index()\n",
        _SHOW,
        expect=lambda scene: [[*one] for one in Counter(line.split()[2] for line in _lines(scene)).items()],
        **_LOG,
    ),
    _automation(
        "hours",
        ("csv", "json", "md"),
        _PANDAS,
        "result = pd.Series([line[11:13] for line in lines]).value_counts().reset_index()\n",
        _SHOW,
        expect=lambda scene: [[*one] for one in Counter(line[11:13] for line in _lines(scene)).items()],
        **_LOG,
    ),
    _automation(
        "lines",
        ("txt",),
        "",
        'found = [line for line in lines if "@word@" in line]\n',
        "print(len(found))\n",
        expect=lambda scene: "\n".join(line for line in _lines(scene) if scene.slots["word"] in line),
        **_LOG,
    ),
    _automation(
        "split",
        ("zip",),
        _ZIP,
        f'{_ARCHIVE}    for name, part in df.groupby("@group@"):\n'
        '        archive.writestr(f"{name}.csv", part.to_csv(index=False))\n',
        "        print(name, len(part))\n",
        expect=_split,
        needs=("group",),
        ready=(),
    ),
    _automation(
        "archive",
        ("zip",),
        _ZIP_PATHS,
        f"{_ARCHIVE}{_EACH_IN_ZIP}        archive.write(path, path.name)\n",
        _SHOW_PATH,
        expect=_members,
        **_FILES,
    ),
    _automation(
        "rename",
        ("zip",),
        _ZIP_PATHS,
        f'{_ARCHIVE}{_EACH_IN_ZIP}        archive.write(path, f"@prefix@_{{path.name}}")\n',
        _SHOW_PATH,
        expect=lambda scene: {
            f"{scene.slots['prefix']}_{name}": content for name, content in _members(scene).items()
        },
        **_FILES,
    ),
    _automation(
        "to_json",
        ("",),
        _PATHS,
        _EACH + '    pd.read_csv(path).to_json(f"{path.stem}.json", orient="records", force_ascii=False)\n',
        "    print(path.name)\n",
        expect=_each(".json"),
        **_FILES,
    ),
    _automation(
        "to_xlsx",
        ("",),
        _PATHS,
        _EACH + '    pd.read_csv(path).to_excel(f"{path.stem}.xlsx", index=False)\n',
        "    print(path.name)\n",
        expect=_each(".xlsx"),
        **_FILES,
    ),
    _automation(
        "concat",
        ("csv", "xlsx", "json"),
        _PATHS,
        'result = pd.concat(pd.read_csv(path) for path in sorted(Path("input").glob("*.csv")))\n',
        _SHOW_COUNT,
        expect=lambda scene: [
            row for sheet in sorted(scene.sheets, key=lambda one: one.name) for row in sheet.rows
        ],
        **_FILES,
    ),
    _automation(
        "report",
        ("report.md",),
        _PANDAS,
        f"{_BY_GROUP}.reset_index()\n"
        'with open("@out@.md", "w", encoding="utf-8") as file:\n'
        '    file.write("# @title@\\n\\n" + result.to_markdown(index=False, floatfmt=".2f"))\n',
        _SHOW,
        expect=_sums,
        titled=True,
    ),
    _automation(
        "pdf",
        ("pdf",),
        _PLOT,
        f"{_BY_GROUP}.reset_index()\n"
        'plt.axis("off")\n'
        'plt.title("@title@")\n'
        'plt.table(cellText=result.values, colLabels=result.columns, loc="center")\n'
        'plt.savefig("@out@.pdf")\n',
        _SHOW,
        expect=_shown_sums,
        titled=True,
    ),
    _chart(
        "bar",
        f'{_BY_GROUP}\nresult.plot.bar(title="@title@", xlabel="@group@", ylabel="@value@", rot=0)\n',
        _shown_sums,
    ),
    _chart(
        "barh",
        f'{_BY_GROUP}\nresult.plot.barh(title="@title@", xlabel="@value@", ylabel="@group@")\n',
        _shown_sums,
    ),
    _chart(
        "counts",
        'result = df["@group@"].value_counts()\nresult.plot.bar(title="@title@", xlabel="@group@", rot=0)\n',
        lambda scene: [cell for row in _counts(scene) for cell in row],
        needs=("group",),
        ready=(),
    ),
    _chart(
        "line",
        f'{_MONTHS}\nresult.plot.line(title="@title@", xlabel="@date@", ylabel="@value@", marker="o")\n',
        lambda scene: [cell for row in _months(scene) for cell in row],
        needs=("date", "value"),
        ready=(_NUMBERS, _DATES),
    ),
    _chart(
        "pie",
        f'{_BY_GROUP}\nresult.plot.pie(title="@title@", ylabel="", autopct="%.1f%%")\n',
        _shown_sums,
    ),
    _chart(
        "hist",
        'result = df["@value@"].describe().round(2)\n'
        'df["@value@"].plot.hist(title="@title@", bins=20)\n'
        'plt.xlabel("@value@")\n',
        _shown_means("value"),
        needs=("value",),
    ),
    _chart(
        "scatter",
        'result = df[["@value@", "@other@"]].describe().round(2)\n'
        'df.plot.scatter("@value@", "@other@", title="@title@")\n',
        _shown_means("value", "other"),
        needs=("value", "other"),
        ready=(_NUMBERS, _OTHERS),
    ),
)


def faults_of(kind: Kind) -> tuple[Fault, ...]:
    """List what can be wrong deep in a CSV so that the kind's first program ends with a traceback."""
    if kind.reads != "table":
        return ()
    faults: list[Fault] = ["long_row"]
    if _NUMBERS in kind.ready:
        faults += ["unit", "unit", "comma", "comma"]
    # A row without a value has no place in an order, and a chart of two columns shows both means.
    if _NUMBERS in kind.ready and kind.name in {"sum", "mean", "max", "bar", "barh", "report", "hist"}:
        faults += ["gap", "gap"]
    if _DATES in kind.ready:
        faults += ["date_gap", "date_gap", "date_form", "date_form"]
    if kind.name in {"count", "counts", "equal", "sum"}:
        faults.append("late_gb18030")
    return tuple(faults)


def write_program(kind: Kind, scene: Scene, out: str, *, mended: bool = False) -> str:
    """Write the program of a task.

    Args:
        kind: What is asked.
        scene: About what.
        out: Ending of the output file; "" where its kind has none of its own.
        mended: Whether to write the program that handles the fault of the file.
    Returns:
        Python, with a newline at its end.
    """
    sheet, parts = scene.sheets[0], [kind.head]
    if kind.reads in ("table", "two"):
        way = sheet.kind
        if sheet.kind == "csv" and scene.fault != "late_gb18030":
            way = " ".join(["csv", *([sheet.encoding] if sheet.encoding != "utf-8" else [])])
            way += f" {sheet.separator}" if sheet.separator != "," else ""
        parts.append(_READ[way])
    if kind.reads == "two":
        parts.append(_READ["second"])
    if kind.reads == "log":
        parts.append(_READ["log"])
    for line in kind.ready:
        chinese = line == _DATES and "年" in str(sheet.column(scene.slots["date"])[0])
        parts.append(_DATES_ZH if chinese else line)
    parts += [kind.body, _WRITE.get(out, ""), kind.shown]
    text = "".join(parts)
    if mended and scene.fault:
        text = text.replace(*_MENDED[scene.fault])
    return re.sub(r"@(\w+)@", lambda match: scene.slots[match[1]], text)


def fixed_parts() -> list[str]:
    """List the stretches of code between slots, line by line: what all programs are made of.

    Returns:
        Each once, unescaped, in a fixed order.
    """
    written = [*_READ.values(), _NUMBERS, _OTHERS, _DATES, _DATES_ZH, *(new for _, new in _MENDED.values())]
    written += [*_WRITE.values(), *(part for kind in KINDS for part in (kind.head, kind.body, kind.shown))]
    lines = [line for text in written for line in re.findall(r"[^\n]*\n+", text)]
    return list(dict.fromkeys(part for line in lines for part in re.split(r"@\w+@", line) if part))
