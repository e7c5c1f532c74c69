from workbench.studies.trials import format_of


def test_format_by_hand():
    assert format_of(" Tally: a cat 1, two dogs 3. <ans>3</ans>") == (3, 3 / 33)
    assert format_of("1.5 and 2\n\nno") == (2, 3 / 9) and format_of("") == (0, 0.0)
