"""Made-up identities for the sample bank: check digits that are right, in schemes that belong to nobody.

* IBAN: ISO 13616 with check digits by ISO/IEC 7064 MOD 97-10. The country code XF lies in the range that
  ISO 3166-1 leaves to users, so no real account can be meant. XF + 2 check digits + bank 4, branch 4, account 10.
* National id: the scheme of a country that does not exist: `F`, nine digits of a serial number, one check digit
  by ISO/IEC 7064 MOD 11,10.
* E-mail: the domains that RFC 2606 reserves for examples. Phone: trunk code 0555, which is made up.
"""

import numpy as np

from sfumato.lab.samplebank_model import BranchProfile, Draws, Ints, People
from sfumato.lab.samplebank_text import (
    CHINESE_GIVEN,
    CHINESE_SURNAMES,
    GIVEN_FEMALE,
    GIVEN_MALE,
    MAIL_DOMAINS,
    STREETS,
    SURNAMES,
)

IBAN_COUNTRY = "XF"
BANK_CODE = "0420"


def iban(branch: int, account: int) -> str:
    """The IBAN of an account (below 10^10) at a branch (below 10^4)."""
    bban = f"{BANK_CODE}{branch:04d}{account:010d}"
    return f"{IBAN_COUNTRY}{98 - mod97(bban + IBAN_COUNTRY + '00'):02d}{bban}"


def iban_is_valid(text: str) -> bool:
    """Whether a 22-character IBAN of the sample bank's country has the right check digits."""
    return (
        len(text) == 22
        and text.startswith(IBAN_COUNTRY)
        and text[2:].isdecimal()
        and mod97(text[4:] + text[:4]) == 1
    )


def mod97(text: str) -> int:
    """The remainder of ISO/IEC 7064 MOD 97-10: letters count as 10 to 35."""
    return int("".join(str(int(c, 36)) for c in text)) % 97


def national_id(serial: int) -> str:
    """The national id of a serial number below 10^9."""
    digits = f"{serial:09d}"
    return f"F{digits}{mod11_10_check_digit(digits)}"


def national_id_is_valid(text: str) -> bool:
    """Whether a national id has its form and its check digit."""
    return (
        len(text) == 11
        and text[0] == "F"
        and text[1:].isdecimal()
        and mod11_10_check_digit(text[1:10]) == int(text[10])
    )


def mod11_10_check_digit(digits: str) -> int:
    """The check digit that ISO/IEC 7064 MOD 11,10 puts behind these digits."""
    product = 10
    for d in digits:
        product = ((product + int(d)) % 10 or 10) * 2 % 11
    return (11 - product) % 10


def distinct_numbers(draws: Draws, n: int, below: int) -> Ints:
    """`n` different numbers below `below`, in random order: one from each of `n` equal blocks."""
    block = below // n
    return draws.permutation(n) * block + draws.integers(0, block, n)


def identities(
    draws: Draws, people: People, profile: BranchProfile, branch: int, serials: Ints
) -> dict[str, list[str | None]]:
    """PII columns of one branch. `serials` are unique in the whole bank and carry no order."""
    n = len(people.age)
    first, last = draws.integers(0, 10**6, n), draws.integers(0, 10**6, n)
    street, number = draws.integers(0, len(STREETS), n), draws.integers(1, 220, n)
    flat, phone = draws.integers(1, 90, n), distinct_numbers(draws, n, 10**7)
    female = np.where(people.gender == 2, first % 2, people.gender == 0).astype(bool)
    has_mail = draws.random(n) < np.where(people.age > 70, 0.6, 0.96)
    names: list[str | None] = []
    mails: list[str | None] = []
    for i in range(n):
        if people.chinese[i]:
            surname, pinyin = CHINESE_SURNAMES[last[i] % len(CHINESE_SURNAMES)]
            given, given_pinyin = CHINESE_GIVEN[first[i] % len(CHINESE_GIVEN)]
            names.append(surname + given)
            local = f"{given_pinyin}.{pinyin}"
        else:
            given = (GIVEN_FEMALE if female[i] else GIVEN_MALE)[first[i] % len(GIVEN_FEMALE)]
            surname = SURNAMES[last[i] % len(SURNAMES)]
            names.append(f"{given} {surname}")
            local = f"{given}.{surname}".lower()
        domain = MAIL_DOMAINS[first[i] % len(MAIL_DOMAINS)]
        mails.append(f"{local}{serials[i] % 10**4:04d}@{domain}" if has_mail[i] else None)
    return {
        "full_name": names,
        "national_id": [national_id(int(s)) for s in serials],
        "phone": [f"0555 {p // 10**4:03d} {p % 10**4:04d}{branch % 100:02d}" for p in phone.tolist()],
        "email": mails,
        "iban": [iban(branch, int(s) * 7 + 13) for s in serials],
        "address": [
            f"{a} {STREETS[s]}, Flat {f}, {profile.cities[c]}"
            for a, s, f, c in zip(
                number.tolist(), street.tolist(), flat.tolist(), people.city.tolist(), strict=True
            )
        ],
    }
