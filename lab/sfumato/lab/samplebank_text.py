"""Texts of the sample bank: names, streets, what customers write (English and Chinese), and the demo's job."""

GIVEN_FEMALE = (
    "Adela", "Beatrix", "Clarissa", "Dorothea", "Elspeth", "Fiona", "Gwendolyn", "Henrietta", "Ingrid", "Josephine",
    "Katarina", "Leonora", "Mathilda", "Nadezhda", "Ottilie", "Philippa", "Rosalind", "Sunniva", "Theodora", "Ursula",
    "Valentina", "Wilhelmina", "Yasmin", "Zuzanna",
)  # fmt: skip
GIVEN_MALE = (
    "Ambrose", "Bartholomew", "Casimir", "Desmond", "Emmerich", "Florian", "Gottfried", "Hamish", "Isidore",
    "Joachim", "Konstantin", "Leopold", "Maximilian", "Nathaniel", "Octavian", "Percival", "Reinhold", "Sebastian",
    "Thaddeus", "Ulrich", "Valentin", "Wendelin", "Yannick", "Zachary",
)  # fmt: skip
SURNAMES = (
    "Abernathy", "Bergstrand", "Castellanos", "Drummond", "Eisenhower", "Fairweather", "Galbraith", "Hollingworth",
    "Iversen", "Jankowski", "Kowalczyk", "Lindqvist", "Montgomery", "Nakamura", "Oppenheim", "Pemberton",
    "Quillfeather",
    "Rosenkranz", "Schwarzwald", "Thistlewood", "Underhill", "Vanderbeek", "Whitcombe", "Xenakis", "Yarborough",
    "Zimmerwald", "Okonkwo", "Fitzgerald", "Santangelo", "Papadakis", "Bhattacharya", "Mwangi", "O'Sullivan",
    "Dubois",
    "Haraldsen", "Kirkpatrick", "Marchetti", "Szymanski", "Tremblay", "Vasquez",
)  # fmt: skip
CHINESE_SURNAMES = (
    ("王", "wang"), ("李", "li"), ("张", "zhang"), ("刘", "liu"), ("陈", "chen"), ("杨", "yang"), ("赵", "zhao"),
    ("黄", "huang"), ("周", "zhou"), ("吴", "wu"), ("徐", "xu"), ("孙", "sun"), ("欧阳", "ouyang"), ("司马", "sima"),
)  # fmt: skip
CHINESE_GIVEN = (
    ("思远", "siyuan"), ("雨桐", "yutong"), ("子涵", "zihan"), ("浩然", "haoran"), ("静怡", "jingyi"),
    ("建国", "jianguo"),
    ("晓梅", "xiaomei"), ("志强", "zhiqiang"), ("婉清", "wanqing"), ("明轩", "mingxuan"), ("丽华", "lihua"),
    ("文博", "wenbo"), ("梦瑶", "mengyao"), ("海燕", "haiyan"), ("俊杰", "junjie"), ("诗涵", "shihan"),
)  # fmt: skip
MAIL_DOMAINS = ("example.com", "example.org", "example.net", "mail.example")
STREETS = (
    "Lindenhof Lane", "Copperbeech Road", "Windmill Rise", "Saffron Walk", "Larkspur Terrace", "Harbourmaster Row",
    "Old Tannery Street", "Kingfisher Close", "Bellfounder Alley", "Juniper Crescent", "Ropewalk Quay", "Abbotsgate",
    "Chandler's Yard", "Weathervane Avenue", "Hollow Oak Drive", "Gooseberry Mews", "Peregrine Way",
    "Salt Merchant Hill",
)  # fmt: skip

TOPICS = ("fees", "card", "mobile app", "transfer", "service", "loan")
COMPLAINTS = {
    "fees": (
        "I was charged twice for the monthly account fee and nobody could say why.",
        "The foreign exchange fee was not shown before I confirmed the payment.",
        "账户管理费无故上涨，事先没有任何通知。",
    ),
    "card": (
        "My card was declined abroad although I had announced my journey.",
        "The replacement card took three weeks to arrive.",
        "信用卡被重复扣款，至今没有退回。",
    ),
    "mobile app": (
        "Since the last update the app signs me out in the middle of a transfer.",
        "I cannot see my savings account in the app any more.",
        "手机银行经常闪退，转账无法完成。",
    ),
    "transfer": (
        "A transfer to my landlord was delayed by four days and I had to pay a penalty.",
        "The standing order was executed to the wrong account.",
        "跨行转账三天才到账，耽误了交房租。",
    ),
    "service": (
        "I waited fifty minutes at the counter and was then sent to another window.",
        "The adviser did not call back as promised, for the third time.",
        "柜台排队时间太长，工作人员态度冷淡。",
    ),
    "loan": (
        "The interest rate in the contract differs from the one that I was offered.",
        "My application for a loan has been pending for six weeks without an answer.",
        "贷款审批拖了一个多月，没有人给出解释。",
    ),
}
CALL_ME = (
    " Please call me on {phone}. {name}",
    " My account is {iban}. Regards, {name}",
    " You can reach me at {email}. {name}",
    " 请尽快回电 {phone}，{name}",
)
SURVEY_HAPPY = (
    "Friendly people and an app that simply works.",
    "The adviser took time and explained the mortgage well.",
    "Quick answers, fair fees. I recommend you to friends.",
    "服务热情，办理业务很快。",
    "手机银行好用，转账方便。",
    "客户经理很专业，值得推荐。",
)
SURVEY_NEUTRAL = (
    "All right on the whole, nothing special.",
    "The branch is good but opening hours are short.",
    "Fees could be lower, otherwise fine.",
    "总体还可以，手续费有点高。",
    "网点环境不错，但是等候时间较长。",
)
SURVEY_UNHAPPY = (
    "I feel like a number here and am looking for another bank.",
    "Nobody solves a problem, one is passed from desk to desk.",
    "The fees go up and the service goes down.",
    "问题一直没有解决，考虑换一家银行。",
    "手续繁琐，客服电话总是打不通。",
    "非常失望，不会再推荐给朋友。",
)

JOB_TOML = """\
# Which customers will leave? A neural churn net over all branches, trained under differential privacy.
[job]
name = "churn-demo"
kind = "churn-net"
purpose = "Foresee which customers will leave within half a year, to keep them by better service."
contract = "sample-bank"

[privacy]
target_epsilon = 2.0  # for the whole job, evaluation included
delta = 1e-5

[model]
hidden = [16]
embedding_dim = 2
bins = 16

[training]
rounds = 10
local_steps = 20
sample_rate = 0.1
max_grad_norm = 1.0
learning_rate = 0.03
optimizer = "adam"

[evaluation]
bins = 16

[federation]
travel = "session"
min_branches = 3
"""

SECURE_JOB_TOML = """\
# Which customers will leave? The same net as job.toml, but every step is one secure sum over all branches: they
# share one dose of noise, where job.toml has each branch add a dose of its own.
[job]
name = "churn-demo"
kind = "churn-net"
purpose = "Foresee which customers will leave within half a year, to keep them by better service."
contract = "sample-bank"

[privacy]
target_epsilon = 2.0  # for the whole job, evaluation included
delta = 1e-5
mode = "secure-sum"
colluders = 1         # the guarantee holds against the coordinator and any one branch

[model]
hidden = [16]
embedding_dim = 2
bins = 16

[training]
rounds = 100          # one step each
local_steps = 1
sample_rate = 1.0     # every customer in every step: no sampling to get wrong
max_grad_norm = 1.0
learning_rate = 0.05
optimizer = "adam"

[evaluation]
bins = 16

[federation]
travel = "session"
min_branches = 3
"""

PROFILE_TOML = """\
# Who are the customers? Counts by who they are, what they do, how content they are and where they are in their
# life as a customer; and how these go together. Every number comes with an interval that holds the noise.
[job]
name = "portrait-demo"
kind = "profile"
purpose = "Know who our customers are and which groups of them are at risk, to serve them better."
contract = "sample-bank"

[privacy]
target_epsilon = 1.0  # for the whole portrait
delta = 1e-5
mode = "secure-sum"   # the branches share one dose of noise; nobody sees a single branch's counts
colluders = 1

[question]
columns = [
  "age", "gender", "segment", "income_band", "area",                           # who they are
  "channel", "txn_count_90d", "spent_90d", "salary_count_90d", "product_count",  # what they do
  "complaint_count_365d", "nps_mean_365d", "csat_mean_365d",                   # how content they are
  "tenure_months", "days_since_last_txn", "churned",                           # where they are with us
]
cross = [
  ["segment", "churned"],
  ["nps_mean_365d", "churned"],
  ["complaint_count_365d", "churned"],
  ["tenure_months", "churned"],
  ["area", "channel"],
]
min_group = 20        # smaller groups are merged, and said to be

[federation]
travel = "session"
min_branches = 3
"""
