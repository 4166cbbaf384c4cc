"""The kinds of operation: ``execution`` lists them, ``base`` says what each must answer."""
