import sys
from pathlib import Path

# The scripts are programs and not a package: they import one another from their folder, as their tests do.
sys.path.insert(0, str(Path(__file__).parents[3] / "scripts"))
