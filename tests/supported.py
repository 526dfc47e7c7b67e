"""The templates of Label Studio's gallery that are promised to work, and short forms of any config."""

from typing import Any

from draftloop.labelling.controls import Control
from draftloop.labelling.form_fields import Number, TextArea
from draftloop.labelling.labelling import Labelling, compile_labelling
from draftloop.labelling.spans import Labels, Relations

SUPPORTED = (
    "community-contributions/html-ner-tagging-person-and-organization",
    "community-contributions/ner-tagging-invoices-bio-format",
    "community-contributions/two-level-sentiment-analysis-of-x-twitter-posts",
    "conversational-ai/coreference-resolution-and-entity-linking",
    "conversational-ai/intent-classification-and-slot-filling",
    "conversational-ai/response-generation",
    "conversational-ai/response-selection",
    "generative-ai/chatbot-assessment",
    "generative-ai/human-feedback-collection",
    "generative-ai/llm-ranker",
    "generative-ai/response-grading",
    "generative-ai/supervised-llm",
    "generative-ai/visual-ranker",
    "natural-language-processing/content-moderation",
    "natural-language-processing/machine-translation",
    "natural-language-processing/named-entity-recognition",
    "natural-language-processing/question-answering",
    "natural-language-processing/relation-extraction",
    "natural-language-processing/taxonomy",
    "natural-language-processing/text-classification",
    "natural-language-processing/text-summarization",
    "ranking-and-scoring/document-retrieval",
    "ranking-and-scoring/pairwise-classification",
    "ranking-and-scoring/serp-ranking",
    "ranking-and-scoring/text-to-image",
    "structured-data-parsing/freeform-metadata",
    "structured-data-parsing/html-entity-recognition",
    "structured-data-parsing/tabular-data",
)


def short(config: str) -> Labelling:
    """Compile a config with tight bounds: a model that knows nothing writes until they are reached."""
    bounds = {control.name: _bounds(control) for control in compile_labelling(config).controls}
    return compile_labelling(config, {"properties": bounds})


def _bounds(control: Control) -> dict[str, Any]:
    if isinstance(control, TextArea):
        text = {"maxLength": 20}
        return {"items": text, "maxItems": 2} if control.is_many else text
    if isinstance(control, Labels):
        per_region = {other.name: _bounds(other) for other in control.per_region_controls}
        return {"maxItems": 3, "items": {"properties": {"text": {"maxLength": 12}, **per_region}}}
    if isinstance(control, Number) and control.schema()["type"] == "number":
        return {"multipleOf": 0.01}
    return {"maxItems": 3} if isinstance(control, Relations) else {}
