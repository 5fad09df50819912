"""Dataset cards (``<group>/<name>.yaml``) and the loaders they name (one module each).

A loader has ``load(card, folder) -> promptbench.data.dataset.Found``: the field's splits, a function from an
item's path to the image (bytes or PIL image), and a hash of everything that defines them.
"""
