"""Short reviews and remarks: positive, negative or neutral."""

from demo.corpus.words import Draw, Generated


def draw_sentiment(draw: Draw) -> Generated:
    """Draw one remark of one to three clauses of the same polarity.

    Args:
        draw: Randomness and word lists.
    Returns:
        The text and its sentiment.
    """
    language = draw.language()
    polarity = draw.of(("positive", "negative", "neutral"))
    prefix = f"{polarity}: "
    lines = draw.entries(f"sentiment_{language}")
    clauses = [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]
    count = draw.rng.choice((1, 1, 2, 3))
    chosen = [draw.of(clauses) for _ in range(count)]
    if polarity == "negative" and draw.wildly(0.15):
        chosen.append(draw.pick(f"complaint_clauses_{language}"))
    if draw.wildly(0.3):
        chosen = [draw.mutated(clause, 0.07) for clause in chosen]
    if draw.wild and draw.lexical(0.3):
        chosen[0] = draw.word("nouns", language) + ("" if language == "zh" else " ") + chosen[0]
    elif draw.wildly(0.15):
        # A remark about something unheard-of: the polarity must come from the known words.
        chosen[0] = (draw.characters(1, 4) if language == "zh" else draw.letters(3, 8) + " ") + chosen[0]
    text = (
        draw.of(("，", "，", "。", " ", "！")) if language == "zh" else draw.of((", ", ". ", " and "))
    ).join(chosen)
    if draw.chance(0.75):
        text += draw.of(("。", "！", "。", "~") if language == "zh" else (".", "!", "."))
    return Generated(text, {"sentiment": polarity}, language)
