"""Complaints: name, address, e-mail and question, quoted verbatim from a noisy text."""

from collections.abc import Sequence
from dataclasses import dataclass

from demo.corpus.composed import composed_clause
from demo.corpus.lexical import lexical_clause
from demo.corpus.lexicon import Lexicon
from demo.corpus.words import BRACKETS, LETTERS, Draw, Generated, Language, Piece, join, person_name

_ENDS = "。！？!?…"
_FIELDS = ("name", "address", "email", "question")


def _english_address(draw: Draw) -> str:
    street = draw.letters(3, 8).title() if draw.wildly(0.3) else draw.pick("streets_en")
    city = draw.letters(3, 8).title() if draw.wildly(0.25) else draw.pick("cities_en")
    address = f"{draw.between(1, 999)} {street} {draw.pick('street_tails_en')}"
    if draw.chance(0.25):
        address = f"Flat {draw.between(1, 60)}{draw.of(('', 'A', 'B', 'C'))}, {address}"
    address += draw.of((", ", ", ", " ")) + city
    return f"{address} {draw.between(10000, 99999)}" if draw.chance(0.5) else address


def _address(draw: Draw, language: Language) -> str:
    if lexicon := draw.lexical():
        return _real_address(draw, lexicon, language)
    return _english_address(draw) if language == "en" else _chinese_address(draw)


def _chinese_address(draw: Draw) -> str:
    def word(name: str) -> str:
        return draw.characters(1, 3) if draw.wildly(0.35) else draw.pick(name)

    province = draw.pick_shared("provinces") if draw.chance(0.75) else ""
    if draw.wildly(0.1):
        province = draw.characters(2, 3) + draw.of(("省", "市"))
    address = province + word("cities_zh") + draw.of(("市", "市", "县", ""))
    if draw.chance(0.75):
        address += word("districts_zh") + draw.of(("区", "区", "", "镇", "县"))
    address += word("streets_zh") + draw.pick("street_tails_zh")
    if draw.chance(0.25):
        address += word("estates_zh")
    kind = draw.rng.random()
    if kind < 0.35:
        address += f"{draw.between(1, 999)}号"
    elif kind < 0.6:
        address += f"{draw.rng.choice(LETTERS + LETTERS.upper())}座"
    elif kind < 0.9:
        address += f"{draw.between(1, 30)}{draw.of(('栋', '号楼', '幢'))}"
        address += f"{draw.between(1, 4)}单元{draw.between(101, 2804)}室" if draw.chance(0.6) else ""
    if draw.chance(0.4):
        address += f"{draw.of((' ', ' ', ''))}{draw.between(100000, 999999)}"
    return address


def _real_address(draw: Draw, lexicon: Lexicon, language: Language) -> str:
    """Draw an address of places that exist, which need not lie in each other."""
    street, city = lexicon.street(draw.rng, language), lexicon.city(draw.rng, language)
    if language == "en":
        number, tail = draw.between(1, 2000), draw.pick("street_tails_en")
        address = f"{number} {street} {tail}{draw.of((', ', ', ', ' '))}{city}"
        if draw.chance(0.2):
            address = f"{draw.of(('Flat', 'Apt', 'Unit', 'Room'))} {draw.between(1, 99)}, {address}"
        if draw.chance(0.15):
            address += ", " + lexicon.pick(draw.rng, "countries_en")
        return f"{address} {draw.between(10000, 99999)}" if draw.chance(0.4) else address
    address = draw.pick_shared("provinces") if draw.chance(0.6) else ""
    address += city + draw.of(("市", "市", "县", ""))
    if draw.chance(0.7):
        address += lexicon.pick(draw.rng, "districts_zh")
    if draw.chance(0.85):
        address += street + draw.pick("street_tails_zh")
    if draw.chance(0.3):
        address += lexicon.pick(draw.rng, "nouns_zh")[:2] + draw.of(
            ("花园", "小区", "家园", "大厦", "公寓", "新村", "广场", "苑")
        )
    kind = draw.rng.random()
    if kind < 0.4:
        address += f"{draw.between(1, 999)}号"
    elif kind < 0.8:
        address += f"{draw.between(1, 60)}{draw.of(('栋', '号楼', '幢', '座', '弄'))}"
        address += f"{draw.between(1, 6)}单元" if draw.chance(0.4) else ""
        address += f"{draw.between(101, 2804)}{draw.of(('室', '', '号', '房'))}" if draw.chance(0.6) else ""
    return address + (f"{draw.of((' ', ''))}{draw.between(100000, 999999)}" if draw.chance(0.3) else "")


def _email(draw: Draw) -> str:
    kind = draw.rng.random()
    if draw.wildly(0.4):
        user = draw.letters(2, 9)
        if draw.chance(0.4):
            user += draw.of((".", "_", "-", "")) + "".join(
                draw.rng.choice(LETTERS + "0123456789") for _ in range(draw.between(1, 6))
            )
    elif kind < 0.3:
        user = draw.pick("mail_words") + str(draw.between(1, 9999))
    elif kind < 0.6:
        user = draw.pick("mail_words") + draw.of(("", ".", "_")) + draw.pick("mail_words")
    else:
        user = draw.of(("", draw.rng.choice(LETTERS))) + draw.pick("mail_words")
    if draw.wildly(0.3):
        return f"{user}@{draw.letters(2, 8)}{draw.of(('.com', '.cn', '.net', '.org', '.com.cn', '.io'))}"
    return f"{user}@{draw.pick('mail_hosts')}"


def _wild_clause(draw: Draw, language: Language, clause: str) -> str:
    """Take a training clause apart, or make one up."""
    kind = draw.rng.random()
    if kind < 0.3:
        return composed_clause(draw, language)
    if language == "en":
        if kind < 0.42:
            return " ".join(draw.letters(1, 9) for _ in range(draw.between(2, 7)))
        words, others = clause.split(), draw.pick("complaint_clauses_en").split()
        return " ".join(words[: draw.between(1, len(words))] + others[draw.between(0, len(others)) :])
    if kind < 0.5:
        return draw.characters(2, 12)
    if kind < 0.68:
        cut = draw.between(0, len(clause) - 1)
        return clause[:cut] + draw.characters(1, 3) + clause[cut + draw.between(0, 2) :]
    if kind < 0.8:
        return clause[: draw.between(2, len(clause))]
    other = draw.pick("complaint_clauses_zh")
    return clause[: len(clause) // 2] + other[len(other) // 2 :]


def _clause(draw: Draw, language: Language) -> str:
    if draw.wild and draw.lexical(0.35):
        return lexical_clause(draw, language)
    clause = draw.pick(f"complaint_clauses_{language}")
    if draw.wildly(0.62):
        return _wild_clause(draw, language, clause)
    if language == "zh" and draw.chance(0.08):
        days, yuan, months = draw.between(2, 90), draw.between(10, 9999), draw.between(2, 12)
        return clause + draw.of((f"已经{days}天", f"，损失{yuan}元", f"都{months}个月了"))
    return clause


def _quoted(draw: Draw, clause: str) -> str:
    marks = draw.of(('""', '""', "“”", "「」", "''"))
    start = draw.between(0, max(0, len(clause) - 3))
    stop = draw.between(start + 1, len(clause))
    return clause[:start] + marks[0] + clause[start:stop] + marks[1] + clause[stop:]


def _noise(draw: Draw, language: Language) -> str:
    parts = []
    for _ in range(draw.rng.choice((1, 1, 2, 2, 3, 4, 8))):
        if draw.wildly(0.35):
            parts.append(
                draw.rng.choice(
                    (draw.characters(1, 8), draw.letters(2, 8), draw.symbols(), str(draw.between(0, 99999)))
                )
            )
        else:
            parts.append(draw.pick(f"complaint_noise_{language}"))
        if draw.wildly(0.15):
            parts.append(draw.of(parts) if draw.chance(0.6) else parts[-1][-1] * draw.between(1, 3))
    return draw.of(("", "", "，", " ", "、")).join(parts)


def _question(draw: Draw, language: Language, tail: str | None) -> str:
    """Draw a question; `tail` is what follows in the text, None where nothing does."""
    count = draw.rng.choice((1, 1, 2, 2, 3, 4))
    comma = draw.of((", ", ", ", ". ", "; ", " and ")) if language == "en" else draw.of("，，，，,,、；。！ ")
    if draw.chance(0.05):
        comma = "\n"
    clauses = [_clause(draw, language) for _ in range(count)]
    if count > 1 and draw.wildly(0.2):
        clauses[draw.between(1, count - 1)] = clauses[0]
    if draw.chance(0.06):
        spot = draw.between(0, count - 1)
        clauses[spot] = _quoted(draw, clauses[spot])
    question = clauses[0]
    for clause in clauses[1:]:
        question += (comma if not draw.wildly(0.2) else draw.of("，,。！？ ；")) + clause
    if language == "en" and draw.chance(0.6):
        question = question[0].upper() + question[1:]
    if draw.wildly(0.015):
        question += draw.of(("\\", "\\n", "\t", '"', "\\\\"))
    if tail is None:
        question += (
            draw.of("...!!?") if language == "en" else draw.of("。。！！?!？…") if draw.chance(0.8) else ""
        )
        if draw.chance(0.3):
            question += draw.of(("", "", " ", "\n")) + _noise(draw, language)
    elif not tail or tail[0].isalnum() or tail[0] in "，,、 " or draw.chance(0.5):
        # Without an end of its own, nobody could tell where the question stops.
        question += draw.of("...!?") if language == "en" else draw.of("。。。！!？?")
        question += draw.of(("", "", "", "！", "。。"))[:2] if language == "zh" and draw.chance(0.1) else ""
    return question.strip()


@dataclass
class _Segment:
    field: str | None
    pieces: list[Piece]


def _listed(draw: Draw, language: Language) -> list[Piece]:
    """Lay the fields out one after the other, each with or without a label."""
    fields = [field for field in _FIELDS if field == "question" or not draw.chance(0.14)]
    if draw.chance(0.65):
        draw.rng.shuffle(fields)
    bare = draw.chance(0.15)
    segments = []
    for field in fields:
        label = draw.pick(f"{field}_labels_{language}")
        if draw.wildly(0.2):
            label = draw.label(language)
        if bare or draw.chance(0.25):
            label = ""
        segments.append(_Segment(field, [Piece(label), Piece("", field)]))
    if draw.chance(0.12):
        phone = f"{draw.pick(f'phone_labels_{language}')}1{draw.between(3000000000, 9999999999)}"
        # Not after the question, where everything that follows would belong to it.
        spots = [spot for spot in range(len(segments)) if spot == 0 or segments[spot - 1].field != "question"]
        segments.insert(draw.rng.choice(spots), _Segment(None, [Piece(phone)]))
    separator = draw.pick_shared(f"separators_{language}")
    if draw.wildly(0.3):
        space = draw.of(("", "", " "))
        separator = space + draw.symbols() + space
    pieces: list[Piece] = []
    for spot, segment in enumerate(segments):
        if spot:
            mark = draw.pick_shared(f"separators_{language}") if draw.chance(0.2) else separator
            if segments[spot - 1].field == "question" and mark[0] in _ENDS:
                mark = ""
            pieces.append(Piece(mark))
        pieces += segment.pieces
    return pieces


def _invented(draw: Draw, language: Language) -> list[Piece]:
    """Make a template of shuffled fields between random words."""
    fields = [field for field in _FIELDS if field == "question" or not draw.chance(0.12)]
    draw.rng.shuffle(fields)
    mark = draw.pick_shared(f"separators_{language}")
    pieces = [Piece(draw.label(language) if draw.chance(0.4) else "")]
    if draw.chance(0.2):
        pair = draw.of(BRACKETS)
        left, right = pair[0], pair[1]
        mark = draw.of(("", "", mark))
        for field in fields:
            bare = field == "question" and draw.chance(0.5)
            pieces += [Piece("" if bare else left), Piece("", field), Piece(("" if bare else right) + mark)]
        return pieces
    for field in fields:
        kind = draw.rng.random()
        if kind < 0.3:
            pieces.append(Piece(draw.pick(f"{field}_labels_{language}")))
        elif kind < 0.5:
            pieces.append(Piece(draw.label(language)))
        elif kind < 0.58:
            pieces.append(Piece(draw.symbols()))
        pieces += [Piece("", field), Piece(draw.symbols() if draw.chance(0.15) else mark)]
    if draw.chance(0.8):
        pieces.pop()
    return pieces


def fill(draw: Draw, language: Language, pieces: Sequence[Piece]) -> tuple[list[Piece], dict[str, str]]:
    """Draw what stands in the slots of a complaint's fields; other slots are left to the caller.

    Args:
        draw: Randomness and word lists.
        language: Of the text.
        pieces: Its template.
    Returns:
        The template without the end marks that the question brings itself; the text of each slot.
    """
    values: dict[str, str] = {}
    pieces = [piece for piece in pieces if piece.slot or piece.text]
    spot = next(index for index, piece in enumerate(pieces) if piece.slot == "question")
    if spot + 1 < len(pieces) and not pieces[spot + 1].slot:
        literal = pieces[spot + 1].text.lstrip(_ENDS)
        pieces[spot + 1] = Piece(literal)
        tail: str | None = literal
        if not literal.strip() and spot + 2 == len(pieces):
            tail = None
    else:
        tail = "" if spot + 1 < len(pieces) else None
    for slot in [piece.slot for piece in pieces if piece.slot]:
        if slot == "name":
            values[slot] = person_name(draw, language)
        elif slot == "address":
            values[slot] = _address(draw, language)
        elif slot == "email":
            values[slot] = _email(draw)
        elif slot == "question":
            values[slot] = _question(draw, language, tail)
    return pieces, values


def draw_complaint(draw: Draw) -> Generated:
    """Draw one complaint.

    Args:
        draw: Randomness and word lists.
    Returns:
        The text and its four fields; an absent one is None.
    """
    language = draw.language()
    opener = draw.pick(f"complaint_openers_{language}") if draw.chance(0.15) else ""
    if draw.chance(0.5):
        _, pieces = draw.template(f"complaint_templates_{language}", keep=0.87)
    elif draw.wildly(0.4):
        pieces = _invented(draw, language)
    else:
        pieces = _listed(draw, language)
    pieces, values = fill(draw, language, pieces)
    shown = dict(values)
    if "name" in shown and draw.chance(0.15):
        title = draw.pick(f"common_roles_{language}" if draw.wildly(0.4) else f"titles_{language}")
        shown["name"] = f"{title} {shown['name']}" if language == "en" else shown["name"] + title
    text = (opener + join(pieces, shown)).strip()
    return Generated(text, {field: values.get(field) for field in _FIELDS}, language)
