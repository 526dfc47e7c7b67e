"""The door to Label Studio: projects, connections, tabs, tasks and predictions over its API.

Knows addresses, tokens, pages, retries and Label Studio's errors. Does not know labelling, drafts or
datasets: tasks and predictions pass through as Label Studio writes them. The only package that imports
label_studio_sdk, and of that the base client: the full one takes three times as long to start. Tasks,
predictions and the list of projects go through the SDK's HTTP client directly, because its models make
listings several times slower.

    requests.py  retries, and what errors mean             listing.py  one long answer, on disk
    queries.py   filters, fields, the project              tasks.py    tasks, annotations, predictions
    tabs.py      saved tabs                                client.py   all of it, projects, connections
    sessions.py  who is logged in
"""

from draftloop.labelstudio.client import EVENTS, LabelStudio
from draftloop.labelstudio.queries import Project
from draftloop.labelstudio.sessions import Sessions
from draftloop.labelstudio.tabs import NEXT_TAB, SENT_BACK_TAB, TABS, Outcome

__all__ = ["EVENTS", "NEXT_TAB", "SENT_BACK_TAB", "TABS", "LabelStudio", "Outcome", "Project", "Sessions"]
