"""The load tester: core/ measures and judges, locust/ connects it to Locust, chat/ holds what all chat users share."""
