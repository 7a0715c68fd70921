"""TOFU, MUSE and WMDP as their authors count them: suites, conventions, scoring and results."""
