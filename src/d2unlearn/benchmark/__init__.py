"""TOFU, MUSE, WMDP, LUME and Years as their authors count them: suites, conventions, scoring and results."""
