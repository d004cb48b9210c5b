"""Agreements with defined terms, numbered sections and references between them; opinions; statutes; notices."""

from .words import NUMBER_WORDS, SHARED

# What an agreement calls its two parties, and what it is about.
KINDS = (
    ("Services Agreement", "Provider", "Client", "the services described in Schedule A"),
    ("Lease Agreement", "Landlord", "Tenant", "the premises described in Schedule A"),
    ("License Agreement", "Licensor", "Licensee", "the software and its documentation"),
    ("Supply Agreement", "Supplier", "Purchaser", "the goods listed in Schedule A"),
    ("Loan Agreement", "Lender", "Borrower", "a loan in the principal amount stated below"),
    ("Employment Agreement", "Employer", "Employee", "the duties described in Schedule A"),
    ("Non-Disclosure Agreement", "Discloser", "Recipient", "certain confidential information"),
    ("Distribution Agreement", "Manufacturer", "Distributor", "the products within the territory"),
)

RULES = SHARED | {
    "state": ["Delaware", "New York", "Ohio", "Texas", "California", "Oregon", "Illinois", "Georgia"],
    "days": lambda w: (lambda n: f"{NUMBER_WORDS[n // 5]} ({n // 5}) business days" if n <= 60 else f"{n} days")(
        5 * w.number(1, 36)),
    "section": lambda w: f"Section {w.number(1, 9)}.{w.number(1, 4)}",
    "amount": lambda w: f"${w.number(1, 900)},000",
    "either": ["{one}", "{two}", "either party", "the breaching party"],
    "loss": ["losses", "damages", "claims", "liabilities", "costs", "expenses (including reasonable attorneys' fees)",
             "penalties", "judgments"],
    "law": ["applicable law", "the laws of the State of {state}", "any order of a court of competent jurisdiction",
            "the rules of any stock exchange"],
    "except": ["except as otherwise provided in {section}", "subject to {section}", "notwithstanding anything to the contrary "
               "in this Agreement", "to the fullest extent permitted by {law}", "without limiting the generality of the foregoing"],
    "Payment": ["{^two} shall pay to {one} the sum of {amount} within {days} after receipt of an invoice.",
                "Any amount not paid when due shall bear interest at the rate of {few} percent per annum.",
                "All payments shall be made without set-off, deduction or counterclaim, {except}.",
                "{^two} shall reimburse {one} for expenses that were approved in writing in advance.",
                "If {two} disputes an invoice in good faith, it shall notify {one} within {days}."],
    "Term and Termination": ["This Agreement commences on the Effective Date and continues for a period of {few} years.",
                             "Either party may terminate this Agreement upon {days} prior written notice.",
                             "{^one} may terminate this Agreement immediately if {two} becomes insolvent.",
                             "Upon termination, {two} shall promptly return all property of {one}.",
                             "{^section} and {section} shall survive the termination of this Agreement."],
    "Confidentiality": ["{^two} shall hold in strict confidence all Confidential Information of {one}.",
                        "The foregoing shall not apply to information that is or becomes publicly available through no fault "
                        "of {two}.",
                        "{^two} may disclose Confidential Information to the extent required by {law}.",
                        "Neither party shall use the Confidential Information for any purpose other than the performance of "
                        "this Agreement."],
    "Indemnification": ["{^two} shall indemnify, defend and hold harmless {one} from and against any and all {loss}, {loss} and "
                        "{loss} arising out of a breach of {section}.",
                        "The indemnified party shall give prompt written notice of any claim.",
                        "No settlement shall be entered into without the prior written consent of {either}.",
                        "The obligations under this Section are, {except}, several and not joint."],
    "Limitation of Liability": ["In no event shall {either} be liable for any indirect, incidental or consequential {loss}.",
                                "The aggregate liability of {one} shall not exceed {amount}, {except}.",
                                "The limitations of this Section shall not apply to gross negligence or willful misconduct."],
    "Warranties": ["{^one} represents and warrants that it has full power and authority to enter into this Agreement.",
                   "{^except}, {one} makes no warranty of any kind, express or implied, including any implied warranty of "
                   "merchantability or fitness for a particular purpose.",
                   "{^two} represents that its performance will not violate {law}."],
    "Assignment": ["Neither party may assign this Agreement without the prior written consent of the other party.",
                   "Any purported assignment in violation of this Section shall be null and void.",
                   "This Agreement shall bind and inure to the benefit of the parties and their permitted successors."],
    "Force Majeure": ["Neither party shall be liable for a delay caused by acts of God, war, strikes, fire or flood.",
                      "If such an event continues for more than {days}, {either} may terminate this Agreement."],
    "Insurance": ["{^two} shall maintain insurance with limits of not less than {amount} per occurrence.",
                  "Certificates of insurance shall be delivered to {one} within {days}."],
    "Governing Law": ["This Agreement shall be governed by and construed in accordance with the laws of the State of {state}.",
                      "The parties submit to the exclusive jurisdiction of the courts of {state}.",
                      "Any dispute shall first be referred to mediation in {town}, {state}."],
    "Notices": ["All notices shall be in writing and shall be deemed given when delivered to the address set forth above.",
                "A copy of any notice to {one} shall be sent to the attention of {person}."],
    "Miscellaneous": ["This Agreement constitutes the entire agreement between the parties.",
                      "No waiver of any provision shall be effective unless in writing and signed by {either}.",
                      "If any provision is held invalid, the remaining provisions shall remain in full force and effect.",
                      "This Agreement may be executed in counterparts, each of which shall be deemed an original."],
    "court": ["the District Court", "the Court of Appeals", "the Superior Court", "the Circuit Court"],
    "claim": ["breach of contract", "negligence", "unjust enrichment", "fraud in the inducement", "wrongful termination",
              "trespass", "conversion", "breach of fiduciary duty", "tortious interference"],
    "holding": ["affirmed", "reversed", "vacated and remanded", "affirmed in part and reversed in part"],
    "cite": lambda w: f"{w.pick(RULES['last'])} v. {w.pick(RULES['last'])}, {w.number(100, 599)} F.{w.number(2, 3)}d "
                      f"{w.number(1, 1400)} ({w.number(1961, 2019)})",
    "argument": ["{plaintiff} contends that the evidence was sufficient to support a finding of {claim}.",
                 "{defendant} argues that the claim for {claim} is barred by the statute of limitations.",
                 "We review the grant of summary judgment de novo. See {cite}.",
                 "A party seeking relief for {claim} must show duty, breach, causation and damages. {cite}.",
                 "The record does not support that conclusion.", "We agree with {defendant}.", "We disagree.",
                 "As this Court held in {cite}, the burden of proof rests with the party that asserts {claim}.",
                 "On {date}, {plaintiff} filed a complaint alleging {claim} and {claim}.",
                 "The trial court granted the motion, and {plaintiff} timely appealed.",
                 "Nothing in {section} of the contract relieved {defendant} of that obligation.",
                 "The jury returned a verdict of {amount} in favor of {plaintiff}."],
    "agency": ["the Commission", "the Department", "the Board", "the Secretary", "the county clerk", "the Authority"],
    "duty": ["shall file a report with {agency} within {days}", "shall pay a fee of {amount} to {agency}",
             "may appeal the decision of {agency} within {days}", "shall keep records for not less than {few} years",
             "shall not operate a {facility} without a permit issued by {agency}",
             "is guilty of a misdemeanor and subject to a fine of not more than {amount}",
             "shall permit an inspection of the {facility} at any reasonable time"],
    "facility": ["landfill", "school bus", "quarry", "boarding house", "public market", "ferry", "water works", "dairy",
                 "nursing home", "warehouse"],
    "actor": ["Any person who owns a {facility}", "The operator of a {facility}", "An applicant", "A licensee",
              "Each municipality", "The owner of record"],
}  # fmt: skip

TOPICS = ("Payment", "Term and Termination", "Confidentiality", "Indemnification", "Limitation of Liability", "Warranties",
          "Assignment", "Force Majeure", "Insurance", "Governing Law", "Notices", "Miscellaneous")  # fmt: skip


def agreement(w):
    kind, one, two, subject = w.pick(KINDS)
    w.remembered.update(one=one, two=two)
    title = kind.upper()
    lines = [
        title, "",
        w.expand(f"This {kind} (this \"Agreement\") is entered into as of {{date}} (the \"Effective Date\") by and between "
                 f"{{company}} Inc., a {{state}} corporation (\"{one}\"), and {{company}} LLC, a {{state}} limited liability "
                 f"company (\"{two}\")."), "",
        f"WHEREAS, {one} desires to provide {subject}; and", f"WHEREAS, {two} desires to receive the same;",
        "NOW, THEREFORE, in consideration of the mutual covenants contained herein, the parties agree as follows:",
    ]  # fmt: skip
    for number, topic in enumerate(w.several(TOPICS, w.number(4, 8)), 1):
        lines += ["", f"{number}. {topic}."]
        for part, clause in enumerate(w.several(RULES[topic], w.number(2, 4)), 1):
            lines.append(f"{number}.{part} " + w.expand(clause))
    lines += ["", "IN WITNESS WHEREOF, the parties have executed this Agreement as of the Effective Date.", "",
              f"{one.upper()}", w.expand("By: {person}"), f"{two.upper()}", w.expand("By: {person}")]  # fmt: skip
    return title, "\n".join(lines)


def opinion(w):
    plaintiff, defendant = w.expand("{plaintiff=last}"), w.expand("{company}")
    w.remembered["defendant"] = defendant
    title = f"{plaintiff} v. {defendant}"
    lines = [title, w.expand(f"No. {w.number(10, 23)}-{w.number(100, 9999)}, decided {{date}}"), "",
             w.expand("Before {last}, {last} and {last}, Circuit Judges."), ""]  # fmt: skip
    lines.append(w.expand(f"{plaintiff} brought this action against {defendant} for {{claim}}. {{^court}} entered judgment for "
                          f"{defendant}. For the reasons that follow, the judgment is {{ruling=holding}}."))  # fmt: skip
    for heading in ("I. Background", "II. Discussion"):
        lines += ["", heading, *(w.paragraph("argument", 2, 5) for _ in range(w.number(1, 3)))]
    lines += ["", "III. Conclusion", w.expand("The judgment of {court} is {ruling}.")]
    return title, "\n".join(lines)


def statute(w):
    chapter = w.number(1, 60)
    title = w.expand(f"Chapter {chapter}. Regulation of each {{subject=facility}}")
    lines = [title]
    for number in range(1, w.number(3, 7)):
        lines += ["", f"Sec. {chapter}-{number}. " + w.expand("{actor} {duty}.")]
        for letter in "abcd"[: w.number(1, 4)]:
            lines.append(w.expand(f"({letter}) {{actor}} {{duty}}, {{except}}."))
    text = "\n".join(lines).replace("this Agreement", "this chapter")
    return title, text


def write_document(w):
    return w.pick((agreement, opinion, statute))(w)
