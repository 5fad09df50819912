"""Data: cards, splits, few-shot samples, images and views."""
