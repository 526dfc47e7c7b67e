"""The ledger: the one home of state that must outlive a process and be shared by workers.

SQLite in WAL mode. Holds what `/setup` showed of each project (Label Studio does not repeat it with
`/predict`), which adapter drafts for it, what each version stands for, what came of each task, who drafts
which task, which job trains, and whose webhook carries a login that it should not.
"""

from draftloop.ledger.claims import ClaimStore
from draftloop.ledger.drafts import DraftStore, KeptDraft, KeptVersion
from draftloop.ledger.jobs import JobRecord, JobStore
from draftloop.ledger.promotions import PromotionStore
from draftloop.ledger.setups import SetupStore

__all__ = ["JobRecord", "KeptDraft", "KeptVersion", "Ledger"]


class Ledger(SetupStore, PromotionStore, DraftStore, ClaimStore, JobStore):
    """All stores over one SQLite file. Safe to call from several threads and processes."""
