"""Mixture laws: predict the loss of a mixture before anyone trains on it.

`xdoge.laws.law.MixtureLaw` is the public class. Prediction needs NumPy and SciPy only.
"""
