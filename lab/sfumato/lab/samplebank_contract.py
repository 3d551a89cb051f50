"""The sample bank's data contract, as the TOML that a bank would write."""

CONTRACT_TOML = """\
# The data contract of the sample bank. A contract is public: bounds, categories and edges are what the bank
# would write down before anybody looks at the data. Using them costs no privacy budget.
version = 1
name = "sample-bank"
purpose = "Foresee which customers will leave within half a year, to keep them by better service."
unit = "customer"              # a customer with all their rows is what is protected, never a single row
max_branches_per_customer = 1  # nobody is a customer of two branches
customers = "customers"        # the table with one row a customer
as_of = 2025-07-01             # roll-ups look back from here; the label looks ahead

# ---------------------------------------------------------------- customers: one row each, with the label
[[tables]]
name = "customers"
description = "One row a customer, as known on the evening before as_of."

[[tables.columns]]
name = "customer_id"
type = "string"
role = "customer_id"           # kept as a keyed token only

# Personal data: no analysis and no model can use these columns.
[[tables.columns]]
name = "full_name"
type = "string"
role = "pii"
protection = "encrypt"         # opened only by an audited act

[[tables.columns]]
name = "national_id"
type = "string"
role = "pii"
protection = "token"           # comparable, never readable: the value itself is not kept

[[tables.columns]]
name = "phone"
type = "string"
role = "pii"
protection = "encrypt"

[[tables.columns]]
name = "email"
type = "string"
role = "pii"
protection = "encrypt"
nullable = true

[[tables.columns]]
name = "iban"
type = "string"
role = "pii"
protection = "encrypt"

[[tables.columns]]
name = "address"
type = "string"
role = "pii"
protection = "drop"            # nobody needs it here, so it is not stored at all

[[tables.columns]]
name = "branch"
type = "string"
role = "branch"

[[tables.columns]]
name = "birth_year"
type = "integer"               # an attribute is stored and can be analysed, but is no model input
bounds = [1900, 2025]

[[tables.columns]]
name = "age"
type = "integer"
role = "feature"
bounds = [18, 100]
edges = [22, 25, 28, 31, 35, 40, 45, 50, 55, 60, 65, 70, 75, 80, 85]
description = "Years on as_of."

[[tables.columns]]
name = "gender"
type = "category"
role = "feature"
categories = ["female", "male", "undisclosed"]

[[tables.columns]]
name = "marital_status"
type = "category"
role = "feature"
categories = ["single", "married", "divorced", "widowed"]

[[tables.columns]]
name = "segment"
type = "category"
role = "feature"
categories = ["mass", "affluent", "private", "student", "senior"]

[[tables.columns]]
name = "income_band"
type = "category"
role = "feature"
categories = ["under 20k", "20k to 35k", "35k to 50k", "50k to 80k", "80k to 120k", "over 120k"]
description = "Euro a year, declared by the customer."

[[tables.columns]]
name = "city"
type = "category"
categories = [
  "Port Alder", "Quayside", "Millrace", "Elmstead", "Fairhaven", "Oakridge",
  "Highfold", "Stonebeck", "Larkmoor", "Northgate", "Campus Hill", "Ironbridge",
]

[[tables.columns]]
name = "area"
type = "category"
role = "feature"
categories = ["urban", "suburban", "rural"]

[[tables.columns]]
name = "channel"
type = "category"
role = "feature"
categories = ["mobile", "web", "branch", "phone"]
description = "How the customer prefers to be reached."

[[tables.columns]]
name = "tenure_months"
type = "integer"
role = "feature"
bounds = [0, 960]
edges = [6, 12, 18, 24, 36, 48, 60, 84, 120, 180, 240, 300]

[[tables.columns]]
name = "churned"
type = "integer"
role = "label"
description = "1: closed the last account within half a year after as_of."

# ------------------------------------------------------------------------------------------- accounts
[[tables]]
name = "accounts"

[[tables.columns]]
name = "customer_id"
type = "string"
role = "customer_id"

[[tables.columns]]
name = "account_type"
type = "category"
categories = ["current", "savings", "deposit"]

[[tables.columns]]
name = "balance"
type = "number"
role = "amount"
bounds = [-1_000_000, 1_000_000]
scale = "log"                  # heavy-tailed: sign(x) * log(1 + |x|)
description = "Euro on the evening before as_of."

[[tables.columns]]
name = "opened"
type = "date"

# --------------------------------------------------------------------------------------- transactions
[[tables]]
name = "transactions"
description = "Two years before as_of."

[[tables.columns]]
name = "customer_id"
type = "string"
role = "customer_id"

[[tables.columns]]
name = "date"
type = "date"
role = "time"

[[tables.columns]]
name = "amount"
type = "number"
role = "amount"
bounds = [-1_000_000, 1_000_000]
scale = "log"
description = "Euro, negative when paid by the customer."

[[tables.columns]]
name = "direction"
type = "category"
categories = ["in", "out"]

[[tables.columns]]
name = "category"
type = "category"
categories = [
  "groceries", "dining", "shopping", "utilities", "rent", "healthcare", "travel", "cash", "transfer", "salary",
]

[[tables.columns]]
name = "channel"
type = "category"
categories = ["card", "mobile", "web", "branch", "standing order"]

# ------------------------------------------------------------------------------------------- holdings
[[tables]]
name = "holdings"
description = "Products beyond the current account."

[[tables.columns]]
name = "customer_id"
type = "string"
role = "customer_id"

[[tables.columns]]
name = "product"
type = "category"
categories = [
  "savings plan", "credit card", "mortgage", "consumer loan", "investment fund", "insurance", "pension",
]

[[tables.columns]]
name = "opened"
type = "date"

# ----------------------------------------------------------------------------------------- complaints
[[tables]]
name = "complaints"

[[tables.columns]]
name = "customer_id"
type = "string"
role = "customer_id"

[[tables.columns]]
name = "date"
type = "date"
role = "time"

[[tables.columns]]
name = "topic"
type = "category"
categories = ["fees", "card", "mobile app", "transfer", "service", "loan"]

[[tables.columns]]
name = "severity"
type = "integer"
bounds = [1, 5]

[[tables.columns]]
name = "text"
type = "string"
role = "pii"                   # free text names people: treat it as personal
protection = "encrypt"

# -------------------------------------------------------------------------------------------- surveys
[[tables]]
name = "surveys"

[[tables.columns]]
name = "customer_id"
type = "string"
role = "customer_id"

[[tables.columns]]
name = "date"
type = "date"
role = "time"

[[tables.columns]]
name = "nps"
type = "integer"
bounds = [0, 10]
description = "Would you recommend us? 0-6 detractor, 7-8 passive, 9-10 promoter."

[[tables.columns]]
name = "csat"
type = "integer"
bounds = [1, 5]

[[tables.columns]]
name = "comment"
type = "string"
role = "text"                  # read by `sentiment` alone
nullable = true

# ------------------------------------------------------------------------------------------- contacts
[[tables]]
name = "contacts"
description = "Last spring's campaign: a reward, or none, by lot; a row for each customer who was drawn."

[[tables.columns]]
name = "customer_id"
type = "string"
role = "customer_id"

[[tables.columns]]
name = "date"
type = "date"
role = "time"

[[tables.columns]]
name = "reward"
type = "category"
categories = ["none", "points", "cashback", "voucher"]

[[tables.columns]]
name = "responded"
type = "boolean"
description = "Used the card at a partner within two months."

[[tables.columns]]
name = "spent"
type = "number"
bounds = [0, 2000]
description = "Euro at partners within two months; 0 for who did not respond."

# ---------------------------------------------------------------------------------------------- loans
[[tables]]
name = "loans"
description = "Customers with credit, as they stood a year before as_of, and what became of it."

[[tables.columns]]
name = "customer_id"
type = "string"
role = "customer_id"

[[tables.columns]]
name = "reviewed"
type = "date"
role = "time"

[[tables.columns]]
name = "score"
type = "integer"
bounds = [300, 850]
description = "The bank's own score on that day: more points are safer."

[[tables.columns]]
name = "exposure"
type = "number"
bounds = [0, 900_000]
scale = "log"
description = "Euro owed on that day, all credit together."

[[tables.columns]]
name = "defaulted"
type = "boolean"
description = "90 days overdue within the year."

# ------------------------------------------------- roll-ups: a number a customer, computed in the vault
[[features]]
name = "balance_total"
table = "accounts"
aggregate = "sum"
column = "balance"
bounds = [-1_000_000, 1_000_000]
scale = "log"
edges = [-1000, -0.01, 0.01, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000]

[[features]]
name = "txn_count_30d"
table = "transactions"
aggregate = "count"
days = 30
bounds = [0, 60]
edges = [1, 2, 3, 4, 5, 6, 8, 10, 15, 20]

[[features]]
name = "txn_count_90d"
table = "transactions"
aggregate = "count"
days = 90
bounds = [0, 150]
edges = [1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30]

[[features]]
name = "txn_count_365d"
table = "transactions"
aggregate = "count"
days = 365
bounds = [0, 400]
edges = [1, 10, 15, 20, 25, 30, 35, 40, 50, 60, 80, 120]

[[features]]
name = "days_since_last_txn"
table = "transactions"
aggregate = "days_since_last"
bounds = [0, 730]
edges = [3, 7, 14, 21, 30, 45, 60, 90, 120, 180, 365]

[[features]]
name = "spent_90d"
table = "transactions"
aggregate = "sum"
column = "amount"
where = { direction = "out" }
days = 90
bounds = [-1_000_000, 0]
scale = "log"
edges = [-10_000, -5000, -2000, -1000, -700, -500, -300, -200, -100, -50, -0.01]

[[features]]
name = "spent_365d"
table = "transactions"
aggregate = "sum"
column = "amount"
where = { direction = "out" }
days = 365
bounds = [-1_000_000, 0]
scale = "log"
edges = [-20_000, -10_000, -7000, -5000, -4000, -3000, -2000, -1500, -1000, -500, -0.01]

[[features]]
name = "net_flow_365d"
table = "transactions"
aggregate = "sum"
column = "amount"
days = 365
bounds = [-1_000_000, 1_000_000]
scale = "log"
edges = [-10_000, -5000, -2000, -1000, 0, 5000, 10_000, 20_000, 30_000, 50_000, 100_000]

[[features]]
name = "salary_count_90d"
table = "transactions"
aggregate = "count"
where = { category = "salary" }
days = 90
bounds = [0, 4]

[[features]]
name = "salary_count_365d"
table = "transactions"
aggregate = "count"
where = { category = "salary" }
days = 365
bounds = [0, 15]
edges = [1, 4, 7, 9, 11, 12]

[[features]]
name = "spending_kinds_90d"
table = "transactions"
aggregate = "distinct"
column = "category"
days = 90
bounds = [0, 10]

[[features]]
name = "product_count"
table = "holdings"
aggregate = "count"
bounds = [0, 7]

[[features]]
name = "complaint_count_365d"
table = "complaints"
aggregate = "count"
days = 365
bounds = [0, 6]

[[features]]
name = "complaint_severity_365d"
table = "complaints"
aggregate = "max"
column = "severity"
days = 365
bounds = [0, 5]
edges = [0.5, 1.5, 2.5, 3.5, 4.5]

[[features]]
name = "nps_mean_365d"
table = "surveys"
aggregate = "mean"
column = "nps"
days = 365
bounds = [0, 10]
edges = [2, 3, 4, 5, 6, 6.5, 7, 7.5, 8, 8.5, 9, 9.5]

[[features]]
name = "csat_mean_365d"
table = "surveys"
aggregate = "mean"
column = "csat"
days = 365
bounds = [1, 5]
edges = [1.5, 2, 2.5, 3, 3.5, 4, 4.5]
"""
