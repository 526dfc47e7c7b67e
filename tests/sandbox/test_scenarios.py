"""What teams do with it, with real files: a script stands where a model would write one.

A CSV that is larger than the memory, subtitles burned into clips, a screenshot of a page, an archive of logs,
and a chain of three languages. DRAFTLOOP_LARGE_CSV_MB is the CSV's size: 40, at --scale 1800.
"""

import csv
import hashlib
import json
import os
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from draftloop.runs.job import MIB, Limits, SandboxJob, Script
from tests.conftest import CHROMIUM, missing
from tests.sandbox.conftest import Field, started

PNG = b"\x89PNG\r\n\x1a\n"
CITIES = ("北京", "上海", "广州", "深圳")

CLEAN_AND_CHART = """
import pandas as pd
import matplotlib.pyplot as plt

sums, kept, read = {}, 0, 0
for chunk in pd.read_csv("input/订单.csv", chunksize=200_000, dtype={"订单号": "int64"}):
    read += len(chunk)
    chunk["金额"] = pd.to_numeric(chunk["金额"], errors="coerce")
    chunk = chunk.dropna(subset=["金额", "城市"])
    chunk = chunk[chunk["金额"] > 0]
    kept += len(chunk)
    for city, amount in chunk.groupby("城市")["金额"].sum().items():
        sums[city] = sums.get(city, 0) + amount
frame = pd.DataFrame(sorted(sums.items()), columns=["城市", "金额"])
frame.to_csv("各城市金额.csv", index=False)
frame.plot.bar(x="城市", y="金额", title="各城市订单金额（元）", legend=False)
plt.tight_layout()
plt.savefig("各城市金额.png")
print(read, kept)
"""

BURN_SUBTITLES = """
set -euo pipefail
for srt in input/*.srt; do
    name=$(basename "$srt" .srt)
    ffmpeg -nostdin -hide_banner -loglevel verbose -i "input/clip.mp4" -c:v libx264 -preset ultrafast \
        -vf "subtitles=$srt:force_style='FontName=Noto Sans CJK SC,FontSize=36'" "$name.mp4"
    ffmpeg -nostdin -loglevel error -ss 1 -i "$name.mp4" -frames:v 1 "$name.png"
done
"""

SCREENSHOT = """
import subprocess
from pathlib import Path
from PIL import Image

for page in sorted(Path("input").glob("*.html")):
    picture = f"{page.stem}.png"
    options = [f"--screenshot={picture}", "--window-size=800,600"]
    subprocess.run(["chromium", *options, page.resolve().as_uri()], check=True)
    print(picture, Image.open(picture).size)
"""

ARCHIVE_LOGS = """
set -euo pipefail
mkdir -p archive
find -L input -name '*.log' -size +0 | sort | while read -r log; do
    month=$(basename "$log" | cut -d- -f2 | cut -c1-6)
    mkdir -p "archive/$month"
    gzip -9 -c "$log" >"archive/$month/$(basename "$log").gz"
done
(cd archive && find . -name '*.gz' | sort | xargs sha256sum >SHA256SUMS)
tar -cf logs.tar -C archive .
rm -r archive
tar -tf logs.tar | grep -c 'gz$'
"""


def large_csv(path: Path, size_bytes: int) -> tuple[int, int, dict[str, int]]:
    """Write a CSV of orders, some of them dirty; return rows, clean rows, and the sum of each city."""
    lines, kept, sums = [], 0, dict.fromkeys(CITIES, 0)
    for number in range(10_000):
        city, amount = CITIES[number % 4], str(number % 997)
        if number % 50 == 7:
            amount = "N/A"
        elif number % 50 == 11:
            amount = f"-{amount}"
        elif number % 50 == 13:
            city = ""
        lines.append(f"{number},2024-{number % 12 + 1:02},{city},{amount},{'备注' * 10}\n")
        if city and amount.isdigit() and int(amount) > 0:
            kept, sums[city] = kept + 1, sums[city] + int(amount)
    block = "".join(lines).encode()
    blocks = size_bytes // len(block) + 1
    with path.open("wb") as file:
        file.write("订单号,月份,城市,金额,备注\n".encode())
        for _ in range(blocks):
            file.write(block)
    return 10_000 * blocks, kept * blocks, {city: amount * blocks for city, amount in sums.items()}


def test_a_csv_larger_than_the_memory_is_cleaned_and_charted(
    one_place: Field, pytestconfig: pytest.Config
) -> None:
    megabytes = int(
        os.environ.get("DRAFTLOOP_LARGE_CSV_MB") or (1800 if pytestconfig.getoption("scale") else 40)
    )
    source = one_place.inputs / "订单.csv"
    rows, kept, sums = large_csv(source, megabytes * 1_000_000)
    limits = replace(Limits(), memory_bytes=700 * MIB, wall_s=280, cpu_s=280, disk_bytes=8 * MIB)
    job = SandboxJob((Script(CLEAN_AND_CHART),), {"订单.csv": str(source)}, limits)
    try:
        attempt = one_place.run_job(job)
    finally:
        source.unlink()
    assert attempt.outcome == "ok", attempt
    assert attempt.stdout == f"{rows} {kept}\n"
    assert attempt.stderr == ""
    assert attempt.peak_memory_bytes < limits.memory_bytes
    with (one_place.outputs / "各城市金额.csv").open(encoding="utf-8") as file:
        assert {row["城市"]: float(row["金额"]) for row in csv.DictReader(file)} == sums
    assert (one_place.outputs / "各城市金额.png").read_bytes().startswith(PNG)


def test_subtitles_are_burned_into_clips(one_place: Field) -> None:
    if not shutil.which("ffmpeg"):
        missing("ffmpeg is missing. Run: scripts/setup sandbox")
    make = "ffmpeg -nostdin -loglevel error -f lavfi -i color=gray:size=640x360:rate=10:duration=2 clip.mp4"
    assert one_place.run(make, "shell").outcome == "ok"
    inputs = {"clip.mp4": one_place.inputs / "clip.mp4"}
    shutil.copy(one_place.outputs / "clip.mp4", inputs["clip.mp4"])
    for name, words in {"first": "中文字幕", "second": "鑫淼焱垚"}.items():
        inputs[f"{name}.srt"] = one_place.inputs / f"{name}.srt"
        inputs[f"{name}.srt"].write_text(f"1\n00:00:00,000 --> 00:00:02,000\n{words}\n", encoding="utf-8")
    job = SandboxJob((Script(BURN_SUBTITLES, "shell"),), {name: str(path) for name, path in inputs.items()})
    attempt = one_place.run_job(job)
    assert attempt.outcome == "ok", attempt
    assert [file.path for file in attempt.files] == ["first.mp4", "first.png", "second.mp4", "second.png"]
    assert "Glyph 0x" not in attempt.stderr, "libass names the glyphs that it does not find"
    assert "NotoSansCJK" in attempt.stderr
    first, second = (one_place.outputs.joinpath(f"{name}.png").read_bytes() for name in ("first", "second"))
    assert first.startswith(PNG)
    assert first != second, "boxes look alike"


def test_a_page_is_screenshotted() -> None:
    if not CHROMIUM.exists():
        missing(f"{CHROMIUM} is missing. Run: scripts/setup --browser")
    page = "<meta charset=utf-8><style>body{font-size:60px;background:#eef}</style><h1>WORDS</h1>"
    page += "<script>document.body.append('由脚本写出')</script>"
    with started("root" if os.getuid() == 0 else "user", browser=True) as (sandbox, home):
        inputs = {}
        for name, words in {"第一页": "报告摘要", "第二页": "鑫淼焱垚"}.items():
            path = home / "inputs" / f"{name}.html"
            path.write_text(page.replace("WORDS", words), encoding="utf-8")
            inputs[path.name] = str(path)
        limits = replace(Limits(), processes=400)
        outputs = home / "outputs"
        outputs.mkdir()
        job = SandboxJob((Script(SCREENSHOT),), inputs, limits, profile="browser")
        attempt = sandbox.run(job, str(outputs))
        assert attempt.outcome == "ok", attempt
        assert attempt.stdout == "第一页.png (800, 600)\n第二页.png (800, 600)\n"
        first, second = ((outputs / f"{name}.png").read_bytes() for name in ("第一页", "第二页"))
        assert first.startswith(PNG)
        assert first != second, "boxes look alike"


def test_logs_are_selected_compressed_and_archived(place: Field) -> None:
    inputs = {}
    for day in ("20240131", "20240201", "20240202"):
        path = place.inputs / f"服务-{day}.log"
        path.write_text(f"{day} GET /订单 ERROR 超时\n" * 1000, encoding="utf-8")
        inputs[path.name] = str(path)
    (place.inputs / "empty-20240203.log").write_text("")
    (place.inputs / "notes.txt").write_text("not a log\n")
    for name in ("empty-20240203.log", "notes.txt"):
        inputs[name] = str(place.inputs / name)
    attempt = place.run_job(SandboxJob((Script(ARCHIVE_LOGS, "shell"),), inputs))
    assert attempt.outcome == "ok", attempt
    assert attempt.stdout == "3\n"
    assert [file.path for file in attempt.files] == ["logs.tar"]
    with tarfile.open(place.outputs / "logs.tar") as archive:
        names = {name.removeprefix("./") for name in archive.getnames()}
        sums = archive.extractfile("./SHA256SUMS")
        packed = archive.extractfile("./202401/服务-20240131.log.gz")
        assert sums
        assert packed
        assert hashlib.sha256(packed.read()).hexdigest() in sums.read().decode()
    assert {"202401/服务-20240131.log.gz", "202402/服务-20240201.log.gz"} <= names


def test_python_hands_json_to_node_and_node_to_the_shell(place: Field) -> None:
    source = place.inputs / "销售.csv"
    source.write_text("城市,销售额\n北京,120\n上海,80\n北京,30\n", encoding="gb18030")
    steps = (
        Script(
            "import pandas as pd\nframe = pd.read_csv('input/销售.csv', encoding='gb18030')\n"
            "frame.groupby('城市')['销售额'].sum().to_json('sums.json', force_ascii=False)"
        ),
        Script(
            "const fs = require('fs'); const sums = JSON.parse(fs.readFileSync('sums.json', 'utf8'));\n"
            "const total = Object.values(sums).reduce((a, b) => a + b, 0);\n"
            "const rows = Object.entries(sums).map(([city, sum]) => ({city, sum, share: sum / total}));\n"
            "fs.writeFileSync('report.json', JSON.stringify(rows.sort((a, b) => b.sum - a.sum)));",
            "javascript",
        ),
        Script("tr '{' '\\n' <report.json | grep -c city && gzip -k report.json", "shell"),
    )
    attempt = place.run_job(SandboxJob(steps, {"销售.csv": str(source)}))
    assert attempt.outcome == "ok", attempt
    assert attempt.stdout == "2\n"
    assert [file.path for file in attempt.files] == ["report.json", "report.json.gz", "sums.json"]
    report = json.loads((place.outputs / "report.json").read_text(encoding="utf-8"))
    assert [row["city"] for row in report] == ["北京", "上海"]
    assert report[0]["sum"] == 150
