import itertools

import numpy as np
import pytest

from ehr_ray.errors import InputError
from ehr_ray.events.options import TokenOptions
from ehr_ray.events.patients import Patient
from ehr_ray.events.phrases import Lookups
from ehr_ray.events.tokens import GAPS, TokenBook
from ehr_ray.events.vocabulary import QUANTILES, Vocabulary

MINUTE = 60_000_000
STATIC = np.iinfo(np.int64).min
VALUES = 10 * np.array(QUANTILES)


@pytest.fixture
def vocabulary():
    """A code of values 0 to 10, one without, one that is always 1."""
    codes = ("LAB//50912//mg/dL", "RASH", "VENT")
    quantiles = np.stack([VALUES, np.full(7, np.nan), np.ones(7)])
    ones = np.ones(3)
    return Vocabulary(codes, ones.astype(np.int64), ones, ones, quantiles)


@pytest.fixture
def patient():
    minutes = [0, 5, 5, 125, 126, 126 + 3 * 1440]
    time = np.array([STATIC, *(m * MINUTE for m in minutes)])
    code = np.array([1, 0, 1, 2, 0, 0, 0], np.int32)
    value = np.array([np.nan, 9.0, np.nan, 1.0, 0.1, 5.0, np.nan], np.float32)
    return Patient(7, 0, time, code, value)


def said(book, patient):
    texts = book.texts()
    tokens = book.tokens(patient, patient.value)
    return [texts[i] for i in tokens.phrase], tokens


def test_values_join_their_code_and_gaps_the_next_event(vocabulary, patient):
    words, tokens = said(TokenBook(vocabulary, TokenOptions()), patient)
    assert words == [
        "RASH",
        "Lab Creatinine high",
        "RASH",
        "VENT normal",
        "Lab Creatinine very low",
        "Lab Creatinine normal",
        "Lab Creatinine",
    ]
    gaps = [GAPS[i] if i >= 0 else "" for i in tokens.gap]
    assert gaps == ["", "", "", "", "2 to 4 hours later", "", "2 to 4 days later"]
    np.testing.assert_array_equal(tokens.minute, [0, 0, 5, 5, 125, 126, 126 + 3 * 1440])
    np.testing.assert_allclose(tokens.value, [np.nan, 9, np.nan, 1, 0.1, 5, np.nan])


def test_values_units_and_gaps_may_be_tokens_of_their_own(vocabulary, patient):
    options = TokenOptions(values="own", units="own", gaps="own")
    words, tokens = said(TokenBook(vocabulary, options), patient)
    assert words[:5] == ["RASH", "Lab Creatinine", "high", "mg/dL", "RASH"]
    assert words[5:9] == ["VENT", "normal", "2 to 4 hours later", "Lab Creatinine"]
    assert words[-2:] == ["2 to 4 days later", "Lab Creatinine"]
    assert (tokens.gap == -1).all()
    assert np.isfinite(tokens.value).sum() == 4  # on the code's token, once


def test_values_may_be_numbers_with_units(vocabulary, patient):
    options = TokenOptions(value_as="number", levels=5, units="merged", gaps="none")
    words, _ = said(TokenBook(vocabulary, options), patient)
    assert words[1] == "Lab Creatinine 9 mg/dL"
    assert words[4] == "Lab Creatinine 1 mg/dL"
    assert words[3] == "VENT 1"
    own = TokenOptions(value_as="number", levels=5, values="own", gaps="none")
    words, _ = said(TokenBook(vocabulary, own), patient)
    assert words[1:3] == ["Lab Creatinine", "9"]


@pytest.mark.parametrize("values", ["merged", "own", "none"])
def test_every_id_has_one_text_under_every_option(vocabulary, patient, values):
    places = ("merged", "own", "none")
    for value_as, units, gaps in itertools.product(("bin", "number"), places, places):
        options = TokenOptions(values=values, value_as=value_as, units=units, gaps=gaps, levels=3)
        book = TokenBook(vocabulary, options)
        tokens = book.tokens(patient, patient.value)
        assert len(book.texts()) == len(book)
        assert tokens.phrase.max() < len(book)
        assert (gaps != "none") == (GAPS[0] in book.texts())


def test_ids_do_not_depend_on_the_words(vocabulary, patient):
    book = TokenBook(vocabulary, TokenOptions())
    renamed = book.texts(Lookups(lab={"50912": "Kreatinin"}))
    assert len(renamed) == len(book.texts())
    assert sum(a != b for a, b in zip(renamed, book.texts(), strict=True)) == 6


def test_bins_hold_their_share_of_train(vocabulary):
    value = np.linspace(0.001, 9.999, 1000, dtype=np.float32)
    patient = Patient(1, 0, np.zeros(1000, np.int64), np.zeros(1000, np.int32), value)
    tokens = TokenBook(vocabulary, TokenOptions()).tokens(patient, value)
    assert np.unique(tokens.phrase, return_counts=True)[1].tolist() == [50, 200, 500, 200, 50]
    numbers = TokenBook(vocabulary, TokenOptions(value_as="number", levels=4))
    counts = np.unique(numbers.tokens(patient, value).phrase, return_counts=True)[1]
    assert counts.tolist() == [250] * 4


def test_an_unknown_id_and_an_empty_patient(vocabulary):
    book = TokenBook(vocabulary, TokenOptions())
    nothing = np.zeros(0)
    empty = Patient(1, 0, nothing.astype(np.int64), nothing.astype(np.int32), nothing)
    assert len(book.tokens(empty, nothing).phrase) == 0
    stranger = Patient(5, 0, np.zeros(1, np.int64), np.array([3], np.int32), np.ones(1))
    with pytest.raises(InputError, match="a patient has code id 3"):
        book.tokens(stranger, np.ones(1, np.float32))


@pytest.mark.parametrize("values", ["merged", "own", "none"])
@pytest.mark.parametrize("value_as", ["bin", "number"])
def test_a_phrase_begins_the_event_of_its_code_whose_value_is_within_its_shares(
    vocabulary, patient, values, value_as
):
    """As events become phrases: of each the code, and the value between quantiles of train."""
    options = TokenOptions(values=values, value_as=value_as, units="own", gaps="own")
    book = TokenBook(vocabulary, options)
    code, share = book.begun
    assert len(code) == len(share) == len(book)
    tokens = book.tokens(patient, np.zeros(len(patient.code), np.float32))
    begun = tokens.phrase[code[tokens.phrase] >= 0]
    assert code[begun].tolist() == patient.code.tolist()
    has = np.isfinite(patient.value) & vocabulary.valued[patient.code]
    if values == "merged":
        assert np.isfinite(share[begun, 0]).tolist() == has.tolist()
    for phrase, event in zip(begun[has], np.flatnonzero(has), strict=True):
        quantiles = vocabulary.quantiles[patient.code[event]]
        low, high = np.interp(share[phrase], QUANTILES, quantiles)
        low = -np.inf if share[phrase, 0] == 0 else low
        high = np.inf if share[phrase, 1] == 1 else high
        assert low <= patient.value[event] <= high
    assert (code[book.first_gap :] == -1).all()
