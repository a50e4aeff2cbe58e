-- Accounts of wrong passwords, by the store's clock: the arithmetic of `bucket.rs`, in milliseconds. An account is
-- its failures, until when time is credited against them, when the last delayed attempt is due, and its generation.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local MOST_ABOVE_FREE = 16

local function read(key)
  local failures, credited, due, generation
  local text = redis.call('GET', key)
  if text then
    failures, credited, due, generation = string.match(text, '^(%d+) (%d+) (%d+) (%d+)$')
  end
  if not failures then
    return {key = key, failures = 0, credited = now, due = now, generation = time[1] * 1000000 + time[2]}
  end
  -- No limit is as high: whatever stands there, it is a number that can be read.
  failures = math.min(tonumber(failures), 2000)
  local account = {key = key, failures = failures, credited = tonumber(credited), due = tonumber(due),
    generation = tonumber(generation), exists = true}
  -- The clock was put back.
  if account.credited > now then account.credited = now end
  if account.due > now + 5000 then account.due = now end
  return account
end

local function write(account, every)
  local text = string.format('%.0f %.0f %.0f %.0f', account.failures, account.credited, account.due, account.generation)
  redis.call('SET', account.key, text, 'PX', string.format('%.0f', every * (account.failures + 1) + 10000))
end

-- A rule: {enforced, free, limit (-1: none), first, most}.
local function rule(at)
  return {enforced = ARGV[at] == '1', free = tonumber(ARGV[at + 1]), limit = tonumber(ARGV[at + 2]),
    first = tonumber(ARGV[at + 3]), most = tonumber(ARGV[at + 4])}
end

local function growing(first, above, most)
  return math.min(first * 2 ^ math.min(above, MOST_ABOVE_FREE), most)
end

local function step(account, every, rule)
  local expired = math.floor((now - account.credited) / every)
  account.failures = math.max(account.failures - expired, 0)
  account.credited = account.failures == 0 and now or account.credited + every * expired
  local above = account.failures - rule.free
  if above < 0 then return 0 end
  return growing(rule.first, above, rule.most)
end

local function queued(due, step)
  if step == 0 then return 0 end
  return math.max(due, now) + step - now
end

local function charge(account, delay, rule)
  local most = math.max(rule.free + MOST_ABOVE_FREE, rule.limit)
  account.failures = math.min(account.failures + 1, most)
  if delay > 0 then account.due = now + math.min(delay, rule.most) end
end

-- The networks that a user is known from: eight bytes of a keyed digest and when it was seen (s) for each, the latest
-- last. A text takes two thirds of the memory of a sorted set.
local NETWORK = 12

local function each_network(key, what)
  local text = redis.call('GET', key) or ''
  for at = 1, math.min(#text, 16 * NETWORK) - NETWORK + 1, NETWORK do
    local network, seen = struct.unpack('>c8I4', text, at)
    what(network, seen, string.sub(text, at, at + NETWORK - 1))
  end
end
