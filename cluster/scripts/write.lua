-- messages kept of each pair, number of changes, then of each id and messages waiting; then rows, and messages waiting of each
local bound, changes = tonumber(ARGV[1]), tonumber(ARGV[2])
local touched, users = {}, {}
local function is_user(id)
    if users[id] == nil then
        users[id] = redis.call('HEXISTS', p .. 'users', id) == 1
    end
    return users[id]
end
for i = 3, 2 + 2 * changes, 2 do
    local pair = lower_waiting(ARGV[i], tonumber(ARGV[i + 1]))
    if pair then
        touched[pair] = true
    end
end
for i = 3 + 2 * changes, #ARGV, 2 do
    local _, sender, receiver = parse(ARGV[i])
    if is_user(sender) and is_user(receiver) then -- one may have been removed meanwhile
        touched[keep(ARGV[i], tonumber(ARGV[i + 1]))] = true
    end
end
for pair in pairs(touched) do
    trim(pair, bound)
end
