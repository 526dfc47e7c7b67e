"""Flight requests: intent and cities quoted, dates and times normalised."""

import re
from functools import cache
from typing import Any

from demo.corpus.lexical import lexical_clause
from demo.corpus.words import Draw, Generated, Language, Piece, city_name, join

_MONTHS = "January February March April May June July August September October November December".split()
_CABINS: dict[str, dict[str, tuple[str, ...]]] = {
    "zh": {
        "economy": ("经济舱", "经济舱", "普通舱"),
        "premium_economy": ("超级经济舱", "高端经济舱", "豪华经济舱"),
        "business": ("商务舱", "商务舱", "公务舱"),
        "first": ("头等舱", "头等舱", "一等舱"),
    },
    "en": {
        "economy": ("economy class", "economy", "coach"),
        "premium_economy": ("premium economy", "premium economy class"),
        "business": ("business class", "business"),
        "first": ("first class", "first class"),
    },
}
_NUMBERS_ZH = "一两三四五六七八九"
_NUMBERS_EN = "one two three four five six seven eight nine".split()


def _date(draw: Draw, language: Language) -> tuple[str, str]:
    year, month, day = draw.between(2025, 2029), draw.between(1, 12), draw.between(1, 28)
    normal = f"{year}-{month:02}-{day:02}"
    forms: tuple[str, ...]
    if language == "en":
        name = _MONTHS[month - 1]
        name = name[:3] if draw.chance(0.3) else name
        forms = (f"{day} {name} {year}", f"{name} {day}, {year}", normal)
    else:
        chinese = f"{year}年{month}月{day}"
        forms = (f"{chinese}日", f"{chinese}日", f"{chinese}号", f"{year}年{month:02}月{day:02}日", normal)
        forms += (f"{year}/{month}/{day}", f"{year}.{month}.{day}")
    return draw.of(forms), normal


def _time(draw: Draw, language: Language) -> tuple[str, str]:
    hour, minute = (
        draw.between(0, 23),
        draw.rng.choice((0, 0, 30, 5 * draw.between(0, 11), draw.between(0, 59))),
    )
    normal = f"{hour:02}:{minute:02}"
    if draw.chance(0.45):
        return normal if hour > 9 or draw.chance(0.5) else f"{hour}:{minute:02}", normal
    twelve = hour % 12 or 12
    if language == "en":
        half = "am" if hour < 12 else "pm"
        half = half.upper() if draw.chance(0.3) else half
        clock = f"{twelve}" if not minute else f"{twelve}:{minute:02}"
        return f"{clock} {half}", normal
    tail = (
        ""
        if not minute
        else "半"
        if minute == 30
        else f"{minute:02}分"
        if draw.chance(0.7)
        else f"{minute:02}"
    )
    if hour in (0, 12) or draw.chance(0.2):
        part = "" if hour != 12 else draw.of(("", "中午"))
        return f"{part}{hour}点{tail}", normal
    if hour < 6:
        part = "凌晨"
    elif hour < 12:
        part = draw.of(("上午", "早上") if hour < 9 else ("上午",))
    elif hour < 18:
        part = "下午"
    else:
        part = "晚上"
    return f"{part}{twelve}{'点' + tail if draw.chance(0.8) else f':{minute:02}'}", normal


def _count(draw: Draw, language: Language) -> tuple[str, int]:
    count = draw.between(1, 9) if draw.chance(0.9) else draw.between(10, 99)
    if language == "en":
        number = _NUMBERS_EN[count - 1] if count < 10 and draw.chance(0.4) else str(count)
        noun = draw.of(("passenger", "passenger", "adult", "traveller", "ticket"))
        return f"{draw.of(('for ', 'for ', ''))}{number} {noun}{'s' if count > 1 else ''}", count
    number = _NUMBERS_ZH[count - 1] if count < 10 and draw.chance(0.4) else str(count)
    number = "二" if number == "两" and draw.chance(0.1) else number
    return draw.of(("", "", "", "共", "一共")) + number + draw.of(
        ("人", "位", "个人", "名乘客", "位乘客", "名旅客")
    ), count


@cache
def _verbs(lines: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    return tuple(
        (line.partition(": ")[0], verb) for line in lines for verb in re.findall(r"<([^<>]+)>", line)
    )


def _invented(draw: Draw, language: Language) -> tuple[str, list[Piece]]:
    """Make a request of shuffled parts around a known verb."""
    intent, verb = draw.rng.choice(_verbs(draw.entries(f"flight_templates_{language}")))
    route = re.split(r"(\{\w+\})", draw.pick(f"flight_routes_{language}"))
    parts = [[Piece(verb)], [Piece("", part[1:-1]) if part[:1] == "{" else Piece(part) for part in route]]
    for slot in ("date", "time", "cabin", "count"):
        if draw.chance(0.55):
            label = draw.label(language) if draw.chance(0.2) else ""
            parts.append([Piece(label), Piece("", slot)])
    if draw.lexical(0.5):
        parts.append([Piece(lexical_clause(draw, language))])
    elif draw.chance(0.3):
        parts.append([Piece(draw.characters(1, 6) if language == "zh" else draw.letters(2, 8))])
    draw.rng.shuffle(parts)
    pieces: list[Piece] = []
    for part in parts:
        mark = (
            draw.of((" ", ", ", " - "))
            if language == "en"
            else draw.of(("", "", "，", "，", " ", "的", "、"))
        )
        pieces += [Piece(mark if pieces else ""), *part]
    return intent, pieces


def draw_flight(draw: Draw) -> Generated:
    """Draw one flight request.

    Args:
        draw: Randomness and word lists.
    Returns:
        The text and its seven fields; all but intent and cities may be None.
    """
    language = draw.language()
    if draw.wildly(0.35):
        intent, pieces = _invented(draw, language)
    else:
        keep = draw.rng.choice((0.3, 0.6, 0.6, 0.9))
        intent, pieces = draw.template(f"flight_templates_{language}", keep)
    if draw.chance(0.25):
        pieces.insert(0, Piece(draw.pick(f"flight_openers_{language}")))
    if draw.chance(0.3):
        closer = draw.pick(f"flight_closers_{language}")
        closer = closer.replace("{phone}", f"1{draw.between(3000000000, 9999999999)}")
        closer = closer.replace("{order}", f"{draw.letters(1, 2).upper()}{draw.between(1000, 999999)}")
        closer = closer.replace("{flight}", f"{draw.letters(2, 2).upper()}{draw.between(100, 9999)}")
        pieces.append(Piece(closer))
    departure = arrival = city_name(draw, language)
    while arrival == departure or arrival in departure or departure in arrival:
        arrival = city_name(draw, language)
    date, time, count = _date(draw, language), _time(draw, language), _count(draw, language)
    cabin = draw.of(tuple(_CABINS[language]))
    shown = {
        "from": departure,
        "to": arrival,
        "date": date[0],
        "time": time[0],
        "cabin": draw.of(_CABINS[language][cabin]),
        "count": count[0],
    }
    used = {piece.slot for piece in pieces}
    value: dict[str, Any] = {
        "intent": intent,
        "departure_city": departure,
        "arrival_city": arrival,
        "date": date[1] if "date" in used else None,
        "time": time[1] if "time" in used else None,
        "class": cabin if "cabin" in used else None,
        "passenger_count": count[1] if "count" in used else None,
    }
    return Generated(join(pieces, shown).strip(), value, language)
