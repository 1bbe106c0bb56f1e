"""casd: inject backdoors into a language model, remove one, and measure what happened to the others.

`dir(casd)` lists the public API; `__init__.pyi` says where each name is defined, and `notebooks/quickstart.ipynb` uses most of
them. A name is imported when it is first used, so `import casd` is instant and loads neither torch nor transformers nor Hydra.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
