"""Sentences and clauses with the words of a lexicon: a grammar with more forms than the one of `composed`.

Names stand beside words of all kinds, and what is no name (weather, things, dates, products) stands where
names do, so that the place in a sentence alone does not make a word a person.
"""

import re
from collections.abc import Mapping
from functools import cache

from demo.corpus.lexicon import Lexicon
from demo.corpus.words import Draw, Language, Piece, word_files

Rules = Mapping[str, tuple[list[str], list[int]]]

# As in grammar_zh.txt: symbol, weight, expansion; # is a digit.
_GRAMMAR = {
    "zh": """\
news 40: <lead><subject><predicate><more><end>
news 22: <subject><predicate><more><end>
news 7: <thing><verbs>{LOC}，{ORG}<verbs><thing><end>
news 5: {LOC}<when><predicates>，<subject><predicate><end>
news 4: {PER}（{ORG}）<when><verbs><thing><end>
news 4: <clause><end>
news 4: (|本报|记者){LOC}#月#日电 <subject><predicate><end>
news 3: <roles>：{PER}；(单位|来源|主办|机构|学校)：{ORG}；(地点|地址|城市)：{LOC}
news 3: {PER}、{PER}(、|和|及){PER}<when><verbs><thing><end>
news 3: {LOC}、{LOC}(、|和|及){LOC}<when><predicates><end>
news 3: {ORG}、{ORG}(和|及|、){ORG}<when><verbs><thing><end>
news 2: {PER}，(男|女)，(19##年)?生于{LOC}，(现任|曾任|任){ORG}<roles><end>
lead 5: <times>，
lead 4: <date>，
lead 3: <adverbs>
lead 6: 在{LOC}，
lead 4: 在{LOC}的<nouns>(上|里|中|前|会上|，)，
lead 5: (据|根据|按照|针对|关于){ORG}(消息|的<nouns>|介绍|称|通报)，
lead 3: (受|因|由于)<thing>影响，
lead 2: (随着|除了|关于|对于)<thing>，
end 6: 。
end 1: ！
end 1: ；
end 1: ？
end 1:\x20
subject 22: {PER}
subject 8: <roles>{PER}
subject 9: {ORG}(||的|前|原|新任)<roles>{PER}
subject 6: {LOC}(|的)<roles>{PER}
subject 6: {PER}(|的)(<roles>|父亲|母亲|妻子|儿子|同事|家人)
subject 6: {PER}(和|与|、|及|同){PER}
subject 20: {ORG}
subject 4: {ORG}(和|与|、|联合){ORG}
subject 14: <thing>
subject 5: {LOC}的<thing>
subject 5: {LOC}<nouns>
subject 4: {ORG}的<thing>
subject 3: (来自|位于|家住|出生于|身在){LOC}的({PER}|{ORG}|<nouns>|<roles>{PER})
subject 3: (毕业于|就职于|来自){ORG}的{PER}
subject 4: (##|数百|一|两|三|几)(名|个|位|家|只|辆|场)<nouns>
subject 2: (这|那|该|此|每)(个|家|位|名|次|种)<nouns>
subject 2: (他|她|他们|我们|我|大家|有人)
predicate 14: <when><verbs><after>{ORG}
predicate 15: <when><verbs><after>{LOC}
predicate 10: <when><verbs><after>{PER}
predicate 18: <when><verbs><after><thing>
predicate 9: <when>(在|于|从|到|赴|由|经){LOC}<verbs><after>(|<thing>)
predicate 8: <when>(在|从|向|对|为|与|被|给){ORG}<verbs><after>(|<thing>)
predicate 6: <when>(把|将|向|给|对|为|跟|和|被){PER}<verbs><after>(|<thing>)
predicate 5: <when>(成为|担任|出任|就任|任|当选|辞去){ORG}(|的)<roles>
predicate 4: <when>(任命|聘请|选举|邀请|推荐|指定){PER}(为|担任|任)(|新任)<roles>
predicate 4: 是{ORG}(|的)<roles>
predicate 6: <when><predicates>
predicate 4: (很|非常|十分|更|不太)<adjectives>
predicate 4: <verbs><after>{LOC}的<thing>
predicate 4: <verbs><after>{ORG}的<thing>
predicate 3: <verbs>(位于|设在|来自){LOC}的{ORG}
predicate 2: (说|表示|认为|称|透露|指出)(：“<clause>”|，<clause>)
predicate 2: <when>从{LOC}(到|去|前往|飞往|来到){LOC}
when 8:\x20
when 4: <adverbs>
when 4: <times>
when 2: <date>
when 1: (将|已|曾|正|正在|不|没有|要)
after 4:\x20
after 1: 了
after 1: 过
after 1: 着
date 2: #月#日
date 2: (19|20)##年
date 1: 20##年#月#日
date 1: (周|星期)(一|二|三|四|五|六|日)
date 1: #月(初|底|中旬)
date 1: (上午|下午|晚上)#点
thing 14: <nouns>
thing 5: <adjectives>的<nouns>
thing 4: <nouns><nouns>
thing 2: <verbs><nouns>
thing 2: (台风|暴雨|大雪|地震|高温|寒潮|洪水|雾霾|沙尘暴|雷电|冰雹|山火|干旱|海啸|疫情|流感|大火)
thing 2: (《<nouns>》|“<nouns>”)
thing 1: (新款|一批|第#届|##架|最后一批|一种)<nouns>
thing 1: <nouns>(A|B|X|S|T)#
more 4:\x20
more 1: (，|，并|，但|，随后|，后|，同时|，然后)<predicate><more>
clause 12: <thing><when><predicates>
clause 10: <thing>(很|太|不|不够|不太|特别|一直|有点)<adjectives>
clause 16: <thing><when><verbs><after><thing>
clause 10: (我|我们|我家|他们|你们|对方|客服|店家|工作人员|邻居)<when><verbs><after><thing>
clause 7: (请|要求|希望|请问|能不能|为什么|怎么|什么时候|麻烦)<verbs><thing>
clause 6: <thing>(被|把|给|跟|比|和)<nouns><verbs><after>
clause 5: (没有|不能|无法|拒绝|不肯|还没|一直不)<verbs><thing>
clause 4: <organisation>(|的<nouns>)<when><verbs><after><thing>
clause 3: (在|从|去|到)<place><verbs><after><thing>
clause 3: <thing>(已经|都)(#天|##天|#个月|#年)(了|没人<verbs>|还没<verbs>)
clause 3: <times><thing><verbs><after>
clause 3: (花了|交了|扣了|损失)##元<verbs><nouns>
""",
    "en": """\
news 40: <lead><subject> <predicate><more><when><end>
news 30: <subject> <predicate><more><when><end>
news 5: A <nouns> <verbs> {LOC}, and {ORG} <verbs> the <nouns><end>
news 4: {PER} ({ORG}) <verbs> {PER} ({ORG})<when><end>
news 4: <clause><end>
news 4: {LOC} - <subject> <predicate><when><end>
news 3: {PER}, {PER} and {PER} <verbs> <thing><when><end>
news 3: <thing> <verbs> {LOC}, {LOC} and {LOC}<end>
news 2: <roles>: {PER}, {ORG}, {LOC}
lead 4: In {LOC},\x20
lead 2: At {ORG},\x20
lead 2: According to {ORG},\x20
lead 2: Near {LOC},\x20
lead 2: <adverbs>,\x20
lead 1: On <date>,\x20
lead 1: After the <nouns>,\x20
end 6: .
end 1: !
end 1: ?
when 7:\x20
when 2: \x20<adverbs>
when 1: \x20on <date>
when 1: \x20in <date>
date 2: (Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday)
date 2: (19|20)##
date 1: (January|March|April|June|July|August|October|December)( #)?
title 6:\x20
title 1: (Dr.|Mr.|Mrs.|Ms.|Sir|President|Minister|Mayor|Judge|Professor|Senator|Coach|Sister|Lord)\x20
subject 24: <title>{PER}
subject 8: {PER}, (a|the|former|who is a) <roles> (of|at|with|for) {ORG},
subject 6: {PER}, (who lives in|born in|a <roles> from|the <roles> of) {LOC},
subject 5: <roles> {PER}
subject 6: {ORG} (|<roles> |spokesman |president |'s )<title>{PER}
subject 6: {PER} and {PER}
subject 22: {ORG}
subject 3: {ORG} and {ORG}
subject 6: (The|A|Every|One|No|Our) <thingword> (in|near|from|of|outside) {LOC}
subject 6: (The|A|Some|Two|Many|Several) <nouns> (of|at|from|with) {ORG}
subject 9: (The|A|One|This|That|Our|Another) <thingword>
subject 4: (Rain|Snow|Prices|Demand|<people>|<people>)
subject 3: <people> (in|near|from|at) {LOC}
subject 3: <people> (of|at|from) {ORG}
people 1: (Tourists|Police|Doctors|Students|Workers|Engineers|Residents|Officials|Teachers|Fans|Farmers)
subject 3: {LOC}
subject 2: {LOC}'s <nouns>
subject 2: (He|She|They|We|It|I)
predicate 22: <act> {ORG}
predicate 18: <act> {LOC}
predicate 15: <act> <title>{PER}
predicate 16: <act> <thing> (in|near|outside|across|from|to|for|at) {LOC}
predicate 9: <act> <thing> (of|for|with|by|from|at) {ORG}
predicate 6: <act> <thing> (for|with|to|from|about) {PER}
predicate 12: <act> <thing>
predicate 5: <verbs> (|as )(the |a |its |)<roles> (of|at) {ORG}
predicate 4: (moved|flew|went|drove|walked|travelled) (from {LOC} )?to {LOC}
predicate 4: (was|were|is|are|will be|has been) <adjectives>
predicate 3: (works|worked|studied|teaches) (at|for) {ORG}( in {LOC})?
predicate 2: (was born|grew up|lives|settled|died|waited) in {LOC}
predicate 2: (said|says|thinks|told reporters) that <clause>
act 5: <verbs>
act 3: (will|would|may|could|can|did not|wants to|plans to|decided to|began to|refused to|hopes to) <bases>
act 1: (waited for|talked about|looked at|spoke to|worked with|fought against|arrived in|left for|dealt with)
thing 8: (a|the|its|new|two|the|his|her|their|this) <thingword>
thingword 12: <nouns>
thingword 5: <adjectives> <nouns>
thingword 3: <nouns> <nouns>
thingword 1: (typhoon|storm|earthquake|flood|heatwave|hurricane|snowstorm|fog|drought|wildfire|virus|strike)
more 4:\x20
more 1: ( and|, then|, but|, and) <predicate><more>
clause 10: (the|my|our|your|a|their) <thingword> <verbs> (the|my|our|a) <thingword>
clause 10: (the|my|our|your) <thingword> (is|was|are|has been|keeps being|never was) <adjectives>
clause 8: (they|he|she|we|nobody|somebody|I) <act> (the|my|our|a) <thingword>
clause 6: I (want|need|ask for|never got|still miss|paid for) (the|my|a) <thingword>
clause 4: (please|can you|why did you|nobody could|you must|I cannot) <bases> (the|my|our|a) <thingword>
clause 3: <organisation> <verbs> (the|my|our) <thingword>
clause 2: (the|my) <thingword> (in|from|near) <place> <verbs>( the <nouns>)?
""",
}

_MID_SENTENCE = re.compile(
    r"(?<=, )(The|A|One|No|Our|Every|Some|Two|Many|Several|This|That|Another|Rain|Snow) "
)


@cache
def _rules(language: str) -> Rules:
    rules: dict[str, tuple[list[str], list[int]]] = {}
    for line in _GRAMMAR[language].split("\n"):
        head, colon, expansion = line.partition(": " if ": " in line else ":")
        if not colon:
            continue
        symbol, weight = head.split()
        expansion = "" if expansion == "\x20" else expansion
        expansions, weights = rules.setdefault(symbol, ([], []))
        expansions.append(expansion)
        weights.append(int(weight))
    return rules


def _expand(draw: Draw, language: Language, symbol: str) -> str:
    rules = _rules(language)
    if symbol not in rules:
        return _word(draw, language, symbol)
    expansions, weights = rules[symbol]
    chosen = draw.rng.choices(expansions, weights)[0]
    while "(" in chosen:  # innermost first; what `?` follows is left out as often as not
        chosen = re.sub(
            r"\(([^()]*)\)(\??)",
            lambda match: "" if match[2] and draw.chance(0.5) else draw.of(match[1].split("|")),
            chosen,
            count=1,
        )
    return re.sub(r"<(\w+)>", lambda match: _expand(draw, language, match[1]), chosen)


def _word(draw: Draw, language: Language, symbol: str) -> str:
    if draw.lexicon and symbol == "organisation":
        return draw.lexicon.organisation(draw.rng, language)
    if draw.lexicon and symbol == "place":
        return draw.lexicon.place(draw.rng, language)
    if draw.lexicon and symbol == "bases":
        return draw.lexicon.pick(draw.rng, "verbs_en")
    return draw.word(symbol, language)


def _numbered(draw: Draw, text: str) -> str:
    return re.sub("#", lambda _: str(draw.between(1, 9)), text)


def lexical_clause(draw: Draw, language: Language) -> str:
    """Make up a clause such as a complaint consists of.

    Args:
        draw: Randomness; with a lexicon.
        language: Of the clause.
    Returns:
        A clause without an end mark.
    """
    return _numbered(draw, _expand(draw, language, "clause"))


def lexical_news(draw: Draw, language: Language) -> list[Piece]:
    """Make up a news-like sentence with the slots PER, LOC and ORG.

    Args:
        draw: Randomness; with a lexicon.
        language: Of the sentence.
    Returns:
        The pieces.
    """
    text = _numbered(draw, _expand(draw, language, "news"))
    text = _MID_SENTENCE.sub(lambda match: match[0].lower(), text)
    parts = [part for part in re.split(r"(\{\w+\})", text[0].upper() + text[1:]) if part]
    return [Piece("", part[1:-1]) if part[0] == "{" else Piece(part) for part in parts]


def unknown_lexical_symbols(language: Language, lexicon: Lexicon) -> set[str]:
    """Return what the grammar refers to and neither it nor the lists nor the lexicon have.

    Args:
        language: Of the grammar.
        lexicon: What its words are drawn from.
    Returns:
        The symbols; empty for a sound grammar.
    """
    rules = _rules(language)
    used = {name for lines, _ in rules.values() for one in lines for name in re.findall(r"<(\w+)>", one)}
    own = {"organisation", "place", "bases"}
    listed = {name for name in used if f"common_{name}_{language}" in word_files("train")}
    return {name for name in used - own - listed - set(rules) if not lexicon.has(name, language)}
