local p = KEYS[1] .. ':'

local function now() -- milliseconds, of Redis's clock
    local time = redis.call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Publish an event to all nodes. Events are numbered, so that a node that misses one notices.
local function tell(event)
    local number = redis.call('INCR', p .. 'events')
    redis.call('PUBLISH', p .. 'presence', number .. ' ' .. event)
    return number
end

-- Keep the highest clock of the nodes that users have left: a user may move to a node whose clock is behind.
local function hear_clock(clock)
    if tonumber(clock) > tonumber(redis.call('GET', p .. 'clock') or 0) then
        redis.call('SET', p .. 'clock', clock)
    end
end

local function holder(id)
    local held = redis.call('HGET', p .. 'online', id)
    return held and string.match(held, '^%S+')
end

local function put_online(node, id, name)
    redis.call('HSET', p .. 'online', id, node .. ' ' .. name)
    redis.call('SADD', p .. 'node:' .. node, id)
    return tell('+ ' .. id .. ' ' .. node .. ' ' .. name)
end

local function put_offline(node, id)
    redis.call('SREM', p .. 'node:' .. node, id)
    if holder(id) == node then
        redis.call('HDEL', p .. 'online', id)
        return tell('- ' .. id .. ' ' .. node)
    end
    return 0
end

-- This node may still write mail of a user who has left it, for so many ms. Who logs in elsewhere waits for that.
local function begin_settling(node, id, ms)
    redis.call('SADD', p .. 'settling:' .. id, node)
    redis.call('PEXPIRE', p .. 'settling:' .. id, ms)
    redis.call('SADD', p .. 'settles:' .. node, id)
end

local function end_settling(node, id)
    redis.call('SREM', p .. 'settling:' .. id, node)
    redis.call('SREM', p .. 'settles:' .. node, id)
end

local function end_node(node)
    for _, id in ipairs(redis.call('SMEMBERS', p .. 'node:' .. node)) do
        if holder(id) == node then
            redis.call('HDEL', p .. 'online', id)
        end
    end
    redis.call('DEL', p .. 'node:' .. node, p .. 'settles:' .. node)
    redis.call('HDEL', p .. 'epochs', node)
    redis.call('ZREM', p .. 'nodes', node)
    tell('x ' .. node)
end

-- Past chats and mailboxes; see cluster/chats.py. A row is
--     id: 8 | 1 | sender: 4 | receiver: 4 | count: 4 | the rest, which only cluster/chats.py reads
-- Lua's numbers cannot hold an id, so it stays bytes.

local HEAD_BYTES = 45

local function parse(row)
    return string.sub(row, 1, 8), struct.unpack('>I4I4I4', row, 10)
end

local function pair_of(one, other)
    return math.min(one, other) .. ':' .. math.max(one, other)
end

local function row_of(pair, id)
    return redis.call('ZRANGE', p .. 'chat:' .. pair, '[' .. id, '(' .. id .. '\2', 'BYLEX')[1]
end

local function waiting_of(id) -- how many messages of it wait, and for nobody 0
    local held = redis.call('HGET', p .. 'mail-of', id)
    return held and struct.unpack('>I4', held, 9) or 0
end

local function set_waiting(id, sender, receiver, before, after)
    local mailbox, entry = p .. 'mail:' .. receiver, id .. struct.pack('>BI4', 1, sender)
    if after == 0 then
        redis.call('HDEL', p .. 'mail-of', id)
        redis.call('ZREM', mailbox, entry)
    else
        redis.call('HSET', p .. 'mail-of', id, struct.pack('>I4I4I4', sender, receiver, after))
        redis.call('ZADD', mailbox, 0, entry)
    end
    if redis.call('HINCRBY', p .. 'mail-sizes', receiver, after - before) == 0 then
        redis.call('HDEL', p .. 'mail-sizes', receiver)
    end
end

-- At most so many messages of this batch wait now; returns its pair, if some did.
local function lower_waiting(id, waiting)
    local held = redis.call('HGET', p .. 'mail-of', id)
    if not held then
        return nil
    end
    local sender, receiver, before = struct.unpack('>I4I4I4', held)
    if waiting < before then
        set_waiting(id, sender, receiver, before, waiting)
    end
    return pair_of(sender, receiver)
end

-- Keep this batch, unless it is kept already.
local function keep(row, waiting)
    local id, sender, receiver, count = parse(row)
    local pair = pair_of(sender, receiver)
    if row_of(pair, id) then
        lower_waiting(id, waiting)
        return pair
    end
    redis.call('ZADD', p .. 'chat:' .. pair, 0, row)
    if redis.call('HINCRBY', p .. 'pairs', pair, count) == count then -- it has none so far
        redis.call('SADD', p .. 'partners:' .. sender, receiver)
        redis.call('SADD', p .. 'partners:' .. receiver, sender)
    end
    if waiting > 0 then
        set_waiting(id, sender, receiver, 0, waiting)
    end
    return pair
end

-- Let the oldest batches of a pair go, as far as so many messages remain, and nothing of them waits.
local function trim(pair, bound)
    local excess = (redis.call('HGET', p .. 'pairs', pair) or 0) - bound
    if excess <= math.floor(bound / 8) then
        return
    end
    local key, seen, gone, start, at_once = p .. 'chat:' .. pair, 0, 0, 0, 100
    local rows
    repeat
        rows = redis.call('ZRANGE', key, start, start + at_once - 1)
        local old = {}
        for _, row in ipairs(rows) do
            local id, _, _, count = parse(row)
            seen = seen + count
            if seen > excess then
                break
            end
            if waiting_of(id) == 0 then
                table.insert(old, row)
                gone = gone + count
            end
        end
        if #old > 0 then
            redis.call('ZREM', key, unpack(old))
        end
        start = start + #rows - #old
    until seen > excess or #rows < at_once
    if gone > 0 then
        redis.call('HINCRBY', p .. 'pairs', pair, -gone)
    end
end

-- Forget all that this user has sent and was sent.
local function forget_chats(user)
    for _, entry in ipairs(redis.call('ZRANGE', p .. 'mail:' .. user, 0, -1)) do
        lower_waiting(string.sub(entry, 1, 8), 0)
    end
    for _, other in ipairs(redis.call('SMEMBERS', p .. 'partners:' .. user)) do
        for _, entry in ipairs(redis.call('ZRANGE', p .. 'mail:' .. other, 0, -1)) do
            if struct.unpack('>I4', entry, 10) == tonumber(user) then
                lower_waiting(string.sub(entry, 1, 8), 0)
            end
        end
        local pair = pair_of(tonumber(user), tonumber(other))
        redis.call('UNLINK', p .. 'chat:' .. pair)
        redis.call('HDEL', p .. 'pairs', pair)
        redis.call('SREM', p .. 'partners:' .. other, user)
    end
    redis.call('DEL', p .. 'partners:' .. user)
end

local function why_no_sign_up(looks, max_users, max_id)
    for _, look in ipairs(looks) do
        if redis.call('HEXISTS', p .. 'names', look) == 1 then
            return 'taken'
        end
    end
    local highest = tonumber(redis.call('GET', p .. 'last-id') or 0)
    if redis.call('HLEN', p .. 'users') >= tonumber(max_users) or highest >= tonumber(max_id) then
        return 'full'
    end
end
