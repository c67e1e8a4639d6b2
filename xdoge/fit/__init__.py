"""XDoGE: one weight per source, learned with a small proxy model. `xdoge.fit(...)` calls `xdoge.fit.trainer.fit`."""

from xdoge._callable import make_callable

make_callable(__name__, f"{__name__}.trainer")
