"""A labelling config for each family of codecs, with a task that is hard for it: emoji and repetitions."""

from typing import Any, NamedTuple


class Family(NamedTuple):
    """A config and the data of a task for it."""

    config: str
    data: dict[str, Any]


HTML = (
    "\n<!-- no --><h1>😀 Müller &amp; Söhne</h1>\n<p>Das   <b>Haus</b> von<br>𠮷田 und Haus, 北京。</p>"
    "<table><tr><td>Haus</td><td>A&nbsp;B</td></tr></table><script>var x = 'Haus'</script><ul><li>eins</li>"
    "<li>Haus 😀 zwei</li></ul>"
)
HIDDEN = (
    "<noscript><img src='/x.png' alt='' style='display : none' onload=x> 😀 &amp; raw</noscript>one 😀"
    "<template>template</template><title>a &amp; title</title><xmp>&amp; <b>raw</b></xmp>\r\ntwo"
    "<svg><title>t</title><text y='12'>drawn</text></svg><p hidden='hidden'>unseen</p>a&#13;&#10;b&#x80;"
    "<table>moved<tr><td>three</table><pre>\r\n four\r\n  five</pre> six 𠮷 seven"
)
DIALOGUE = [
    {"author": "张三", "text": "😀你好,北京的李四在吗?"},
    {"author": "Bot", "text": "北京今天 20°C。\nSecond line 😀 with 北京."},
    {"author": "张三", "text": "𠮷田"},
]
ITEMS = [
    {"id": "a", "title": "First", "body": "One 😀"},
    {
        "id": "b",
        "title": "Second",
        "html": "<b>Two</b> <img width='60' src='/static/samples/chairs/chair1.png' alt='a chair'>",
    },
    {"id": 3, "title": "Third", "body": "Three"},
    {"id": "d", "title": "Fourth", "body": "Four"},
]
OPTIONS = [
    {
        "value": "animal",
        "html": "<b>Animal</b>",
        "children": [{"value": "cat"}, {"value": "dog", "hint": "barks"}],
    },
    {"value": "plant"},
    {"value": "stone", "children": [{"value": "granite"}]},
]
TEXT = "😀张三住在北京。\n李四在上海,北京很远。𠮷田"

FAMILIES = {
    "html": Family(
        """<View><HyperTextLabels name="ner" toName="html" choice="multiple">
          <Label value="House"/><Label value="Person"/><Label value="Place"/></HyperTextLabels>
        <HyperText name="html" value="$html"/>
        <Labels name="inline_ner" toName="inline"><Label value="X"/><Label value="Y"/></Labels>
        <HyperText name="inline" value="$html2" inline="true"/></View>""",
        {"html": HTML, "html2": HTML},
    ),
    "dialogue": Family(
        """<View><ParagraphLabels name="slots" toName="talk"><Label value="Person"/><Label value="Place"/>
        </ParagraphLabels><Paragraphs name="talk" value="$talk" layout="dialogue"/>
        <Choices name="intent" toName="talk"><Choice value="Ask"/><Choice value="Tell"/></Choices></View>""",
        {"talk": DIALOGUE},
    ),
    "per_region": Family(
        """<View><Labels name="spans" toName="text"><Label value="Person"/><Label value="Place"/></Labels>
        <Text name="text" value="$text"/>
        <Choices name="gender" toName="text" perRegion="true" whenLabelValue="Person">
          <Choice value="female"/><Choice value="male"/></Choices>
        <Choices name="traits" toName="text" perRegion="true" choice="multiple">
          <Choice value="old"/><Choice value="new"/></Choices>
        <TextArea name="note" toName="text" perRegion="true" maxSubmissions="1"/>
        <TextArea name="aliases" toName="text" perRegion="true"/>
        <Rating name="sure" toName="text" perRegion="true"/></View>""",
        {"text": TEXT},
    ),
    "relations": Family(
        """<View><Relations><Relation value="lives in"/><Relation value="far from"/></Relations>
        <Labels name="people" toName="text"><Label value="Person"/></Labels>
        <Labels name="places" toName="text"><Label value="Place"/></Labels>
        <Text name="text" value="$text"/></View>""",
        {"text": TEXT},
    ),
    "ranking": Family(
        """<View><Text name="left" value="$one"/><Text name="right" value="$two"/>
        <Pairwise name="better" toName="left,right"/>
        <List name="items" value="$items" title="Items"/><Ranker name="order" toName="items"/></View>""",
        {"one": "One", "two": "Two", "items": ITEMS},
    ),
    "buckets": Family(
        """<View><List name="items" value="$items"/><Ranker name="columns" toName="items">
          <Bucket name="good" title="Good"/><Bucket name="bad" title="Bad"/></Ranker></View>""",
        {"items": ITEMS},
    ),
    "default_bucket": Family(
        """<View><List name="items" value="$items"/><Ranker name="columns" toName="items">
          <Bucket name="good" title="Good"/>
          <Bucket name="rest" title="Rest" default="true"/></Ranker></View>""",
        {"items": ITEMS},
    ),
    "options": Family(
        """<View><Text name="text" value="$text"/>
        <Choices name="kinds" toName="text" value="$options" choice="multiple" allowNested="true"/>
        <Choices name="flat" toName="text" value="$flat"/>
        <Choices name="nested" toName="text" allowNested="true" choice="single"><Choice value="A">
          <Choice value="B"/><Choice value="C" alias="c c"/></Choice><Choice value="D"/></Choices>
        <Labels name="spans" toName="text" value="$labels"/></View>""",
        {
            "text": TEXT,
            "options": OPTIONS,
            "flat": [{"value": "x 1", "html": "<i>first</i>"}, {"value": "x 2"}],
            "labels": [{"value": "L1", "background": "red"}, {"value": "L2"}],
        },
    ),
    "conditions": Family(
        """<View><Text name="text" value="$text"/>
        <Choices name="kind" toName="text"><Choice value="bug" alias="B"/><Choice value="wish"/></Choices>
        <View visibleWhen="choice-selected" whenTagName="kind" whenChoiceValue="bug">
          <Choices name="severity" toName="text" required="true">
            <Choice value="high"/><Choice value="low"/></Choices>
          <TextArea name="steps" toName="text" visibleWhen="choice-selected" whenTagName="severity"
            whenChoiceValue="high,low"/>
        </View>
        <Choices name="why" toName="text" visibleWhen="choice-unselected" whenTagName="kind"
          whenChoiceValue="bug" choice="multiple"><Choice value="p"/><Choice value="q"/></Choices></View>""",
        {"text": TEXT},
    ),
    "per_item": Family(
        """<View><Text name="text" value="$text"/><Image name="pages" valueList="$pages" maxWidth="160px"/>
        <Choices name="kind" toName="pages" perItem="true">
          <Choice value="cover"/><Choice value="page"/></Choices>
        <Choices name="traits" toName="pages" perItem="true" choice="multiple">
          <Choice value="old"/><Choice value="torn"/></Choices>
        <Rating name="sharp" toName="pages" perItem="true"/></View>""",
        {"text": TEXT, "pages": ["/static/samples/chairs/chair1.png", "/static/samples/chairs/chair2.png"]},
    ),
    "shown_by_all": Family(
        """<View><Header value="$question"/>
        <Labels name="spans" toName="text"><Label value="Person"/><Label value="Place"/></Labels>
        <Text name="text" value="Title: $title / Body: $mail.parts[1].body / 价格 $ $none"/>
        <Choices name="who" toName="text" choice="multiple"><Choice value="$mail.sender"/>
          <Choice value="someone else"/><Choice value="for $title" alias="third"/></Choices>
        <Collapse><Panel value="About $topic"><View>
          <TextArea name="reply" toName="text" value="$answer" maxSubmissions="1"/></View></Panel></Collapse>
        </View>""",
        {
            "question": "Who lives where?",
            "title": "😀 张三",
            "mail": {"sender": "Li 😀", "parts": [{}, {"body": TEXT}]},
            "topic": "towns",
            "answer": "北京",
        },
    ),
    "spelled": Family(
        """<View><Labels name="spans" toName="text"><Label value="Person"/><Label value="Place"/></Labels>
        <Text name="text" value="$text"/>
        <Choices name="gender" toName="text" perregion="true" whenlabelvalue="Person" required="true">
          <Choice value="female"/><Choice value="male"/></Choices>
        <TextArea name="note" toName="text" PERREGION="true" MaxSubmissions="1"/>
        <Choices name="kind" toName="text"><Choice value="bug"/><Choice value="wish"/></Choices>
        <View visiblewhen="choice-selected" whenTagName="kind" whenchoicevalue="wish">
          <TextArea name="steps" toName="text" maxsubmissions="1"/></View>
        <Choices name="why" toName="text" VisibleWhen="choice-unselected" WhenTagName="kind"
          WhenChoiceValue="wish"><Choice value="p"/><Choice value="q"/></Choices>
        <Taxonomy name="tree" toName="text" leafsonly="true" maxusages="1"><Choice value="a">
          <Choice value="b"/></Choice></Taxonomy></View>""",
        {"text": TEXT},
    ),
    "numbers": Family(
        """<View><Text name="text" value="$text"/>
        <Rating name="stars" toName="text" maxRating="10.0"/>
        <Number name="share" toName="text" min="0.25" max=" 1e3 " step="any"/>
        <Number name="count" toName="text" min="" max="5" step="1.0"/>
        <TextArea name="two" toName="text" maxSubmissions="2.9"/>
        <TextArea name="one" toName="text" maxSubmissions="1.0"/>
        <DateTime name="moment" toName="text" only="date,time"/></View>""",
        {"text": TEXT},
    ),
    "hidden_html": Family(
        """<View><HyperTextLabels name="ner" toName="html"><Label value="A"/><Label value="B"/>
        </HyperTextLabels>
        <HyperText name="html" value="$html"/>
        <Labels name="inline_ner" toName="inline"><Label value="X"/><Label value="Y"/></Labels>
        <HyperText name="inline" value="$html" inline="true"/></View>""",
        {"html": HIDDEN},
    ),
    "shown": Family(
        """<View><Text name="static" value="Read &quot;$title&quot; first"/>
        <Markdown name="md" value="$md"/>
        <Table name="table" value="$table"/>
        <Paragraphs name="talk" value="$talk" nameKey="who" textKey="says"/>
        <Choices name="ok" toName="table"><Choice value="Yes"/><Choice value="No"/></Choices></View>""",
        {
            "title": "T",
            "md": "# Heading\n*text*",
            "table": {"b": 2, "a": "x", "c": {"d": [1]}},
            "talk": [{"who": "A", "says": "hi 😀"}, {"who": "", "says": "ok"}],
        },
    ),
}
