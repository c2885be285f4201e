"""Makes `scalablevit` importable from the checkout or the uploaded copy that this script lies in."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "platform"))
