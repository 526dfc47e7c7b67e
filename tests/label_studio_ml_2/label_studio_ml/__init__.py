"""label-studio-ml 2.x as far as a model class meets it: that package is on git alone.

Written from its interface (2.0.1.dev0), not from its code; tests/integration/test_plugin.py holds this and
the real 1.0.9 to the same.
"""
