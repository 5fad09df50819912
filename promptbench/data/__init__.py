"""Data: from a dataset's card to the views that a backbone sees.

``cards`` and ``splits`` lead to ``dataset`` (loading, base and novel halves), ``draws`` and
``official_draws`` to few-shot samples, ``images`` and ``views`` to pixels. ``folders``, ``contents`` and
``kept`` list and hash files once. ``check`` and ``prepare`` are the commands of ``promptbench data``.
"""
