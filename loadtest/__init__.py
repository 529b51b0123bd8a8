"""The load tester: core/ counts and judges, locust/ joins it to Locust, chat/ is what the chat users share."""
