"""The only code that touches logits: `score` says how likely what happened was, `generate` makes something happen."""

from prefopt.scoring.generate import generate
from prefopt.scoring.score import score, tokens_read
from prefopt.scoring.sharing import shares_prompts
from prefopt.scoring.store import ReferenceStore

__all__ = ["ReferenceStore", "generate", "score", "shares_prompts", "tokens_read"]
